"""A port in PyTorch with names of its own, into whose parts the mistakes of real ports can be planted.

Twin of faulty_linen.py: the same faults by the same names.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_common.config.model import ModelConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Shred(nn.Conv2d):
    """A convolution whose stride is its kernel."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, P = self.weight, self.bias, self.kernel_size[0]
        match self.fault:
            case "H,W,I,O read as O,I,H,W":
                weight = weight.permute(2, 3, 1, 0).reshape(weight.shape)
            case "filters transposed":
                weight = weight.transpose(2, 3)
            case "colours last":
                weight = weight.permute(0, 2, 3, 1).reshape(weight.shape)
            case "no bias":
                bias = None
            case "bfloat16":
                return F.conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), P).to(x.dtype)
            case fault if fault:
                raise ValueError(fault)
        return F.conv2d(x, weight, bias, P)


class Gauge(nn.LayerNorm):
    """A norm over the last axis."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        n, weight, bias, eps = x.shape[-1], self.weight, self.bias, self.eps
        match self.fault:
            case "":
                return super().forward(x)
            case "unbiased variance":
                return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) * weight + bias
            case "epsilon outside the root":
                std = x.var(-1, keepdim=True, correction=0).sqrt()
                return (x - x.mean(-1, keepdim=True)) / (std + eps) * weight + bias
            case "other epsilon":
                return F.layer_norm(x, (n,), weight, bias, 1e-3)
            case "over the patches":
                y = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, correction=0) + eps)
                return y * weight + bias
            case "over everything":
                return F.layer_norm(x, x.shape[1:], None, None, eps) * weight + bias
            case "no mean":
                return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight + bias
            case "no bias":
                return F.layer_norm(x, (n,), weight, None, eps)
            case "statistics detached":
                mean, std = x.mean(-1, keepdim=True), torch.sqrt(x.var(-1, keepdim=True, correction=0) + eps)
                return (x - mean.detach()) / std.detach() * weight + bias
            case "float16":
                return super().forward(x.half().to(x.dtype)).half().to(x.dtype)
        raise ValueError(self.fault)


class Dense(nn.Linear):
    """A linear layer over the last axis."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        match self.fault:
            case "":
                return super().forward(x)
            case "transposed":
                return F.linear(x, weight.T, bias)
            case "reshaped":
                return F.linear(x, weight.T.reshape(weight.shape), bias)
            case "no bias":
                return F.linear(x, weight)
            case "bfloat16" | "float16":
                dtype = getattr(torch, self.fault)
                return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)).to(x.dtype)
            case "TF32":
                return F.linear(tf32(x), tf32(weight), bias)
            case "float32":
                return F.linear(x.float(), weight.float(), bias.float()).to(x.dtype)
            case "weight detached":
                return F.linear(x, weight.detach(), bias)
            case "bias twice":
                return super().forward(x) + bias
        raise ValueError(self.fault)


class Bend(nn.Module):
    """The activation function."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "":
                return F.gelu(x)
            case "tanh":
                return F.gelu(x, approximate="tanh")
            case "ReLU":
                return F.relu(x)
            case "SiLU":
                return F.silu(x)
            case "sigmoid":
                return x * torch.sigmoid(1.702 * x)
            case "none":
                return x
            case "dropout":
                return F.dropout(F.gelu(x), 0.25)
            case "derivative of tanh":
                y = F.gelu(x, approximate="tanh")
                return y + (F.gelu(x) - y).detach()
            case "derivative without density":
                return Halved.apply(x)
        raise ValueError(self.fault)


class Halved(torch.autograd.Function):
    """GELU with a way back that forgets a term."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.special.ndtr(x)


class Branch(nn.Module):
    """Two linear layers over the last axis, or over the axis before (`swap`)."""

    fault = ""

    def __init__(self, size: int, width: int, swap: bool):
        super().__init__()
        self.wide, self.bend, self.narrow, self.swap = Dense(size, width), Bend(), Dense(width, size), swap

    def forward(self, x: Tensor) -> Tensor:
        if not self.swap or self.fault == "over the channels":
            return self.narrow(self.bend(self.wide(x)))
        B, S, C = x.shape
        x = x.reshape(B, C, S) if self.fault == "reshaped in" else x.transpose(1, 2)
        x = self.narrow(self.bend(self.wide(x)))
        return x.reshape(B, S, C) if self.fault == "reshaped out" else x.transpose(1, 2)


class Half(nn.Module):
    """A norm, a branch and the residual connection."""

    fault = ""

    def __init__(self, channels: int, size: int, width: int, swap: bool):
        super().__init__()
        self.gauge, self.branch = Gauge(channels), Branch(size, width, swap)

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "":
                return x + self.branch(self.gauge(x))
            case "norm never used":
                return x + self.branch(x)
            case "result of the norm unused":
                self.gauge(x)
                return x + self.branch(x)
            case "post-norm":
                return self.gauge(x + self.branch(x))
            case "norm after the branch":
                return x + self.gauge(self.branch(x))
            case "no residual":
                return self.branch(self.gauge(x))
            case "residual of the normalised input":
                y = self.gauge(x)
                return y + self.branch(y)
            case "residual twice":
                return 2 * x + self.branch(self.gauge(x))
            case "branch halved":
                return x + 0.5 * self.branch(self.gauge(x))
            case "layer scale":
                scale = torch.linspace(0.1, 1.3, x.shape[-1], dtype=x.dtype)
                return x + scale * self.branch(self.gauge(x))
            case "dropout":
                return x + F.dropout(self.branch(self.gauge(x)), 0.1)
            case "stochastic depth":
                keep = torch.tensor([1.0, 0.0] * len(x), dtype=x.dtype)[: len(x), None, None]
                return x + self.branch(self.gauge(x)) * keep / 0.8
            case "branch detached":
                return x + self.branch(self.gauge(x)).detach()
            case "branch detached at its input":
                return x + self.branch(self.gauge(x.detach()))
            case "stream detached":
                return x.detach() + self.branch(self.gauge(x))
        raise ValueError(self.fault)


class Stack(nn.Module):
    """One block."""

    fault = ""

    def __init__(self, patches: int, channels: int, tokens: int, width: int):
        super().__init__()
        self.across = Half(channels, patches, tokens, swap=True)
        self.along = Half(channels, channels, width, swap=False)

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "":
                return self.along(self.across(x))
            case "mixers exchanged":
                return self.across(self.along(x))
            case "norms exchanged":
                x = x + self.across.branch(self.along.gauge(x))
                return x + self.along.branch(self.across.gauge(x))
            case "side by side":
                branches = [half.branch(half.gauge(x)) for half in (self.across, self.along)]
                return x + branches[0] + branches[1]
            case "left out":
                return x
            case "computed twice":
                return self.along(self.across(self.along(self.across(x))))
        raise ValueError(self.fault)


class Port(nn.Module):
    """Takes pixels (B, 3, H, W). faults: by the part that they are planted in, a submodule's path or a stage.

    given: pixels (B, H, W, 3) that a pipeline of its own made.
    """

    given: np.ndarray | None = None

    def __init__(self, config: ModelConfig, faults: Mapping[str, str] | None = None):
        super().__init__()
        S, C, P = config.num_patches, config.hidden_dim, config.patch_size
        tokens, width = config.tokens_mlp_dim, config.channels_mlp_dim
        self.shred = Shred(3, C, P, P)
        self.pile = nn.ModuleList(Stack(S, C, tokens, width) for _ in range(config.num_blocks))
        self.last_gauge = Gauge(C)
        self.verdict = Dense(C, config.num_classes)
        self.faults = dict(faults or {})
        if self.faults.get("tail") == "class token":
            self.extra_token = nn.Parameter(torch.linspace(-1, 1, C)[None, None])
        for path, fault in self.faults.items():
            if path not in ("pixels", "stem", "order", "tail"):
                self.get_submodule(path).fault = fault

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(self.rescale(images, self.faults.get("pixels", "")), self.faults.get("stem", ""))
        order = list(range(len(self.pile)))
        match self.faults.get("order", ""):
            case "as text":
                order = sorted(order, key=str)
            case "backwards":
                order = order[::-1]
            case "first one always":
                order = [0] * len(order)
            case "two exchanged":
                order[1:3] = order[2], order[1]
        for i in order:
            x = self.pile[i](x)
        return self.finish(x, self.faults.get("tail", ""))

    def rescale(self, x: Tensor, fault: str) -> Tensor:
        """Pixels (B, 3, H, W) from -1 to 1 as the stem takes them."""
        B, _, H, W = x.shape
        match fault:
            case "":
                return x
            case "0 to 1":
                return (x + 1) / 2
            case "0 to 255":
                return (x + 1) * 127.5
            case "ImageNet":
                mean, std = (torch.tensor(values, dtype=x.dtype)[:, None, None] for values in (MEAN, STD))
                return ((x + 1) / 2 - mean) / std
            case "own numbers":
                return ((x + 1) / 2 - 0.3) / 0.7
            case "BGR":
                return x.flip(1)
            case "N,H,W,C read as N,C,H,W":
                return x.permute(0, 2, 3, 1).reshape(B, 3, H, W)
            case "rows and columns":
                return x.transpose(2, 3)
            case "given":
                return torch.tensor(self.given, dtype=x.dtype).permute(0, 3, 1, 2)
        raise ValueError(fault)

    def embed(self, x: Tensor, fault: str) -> Tensor:
        """Tokens (B, S, C) of pixels."""
        x = self.shred(x)
        match fault:
            case "":
                return x.flatten(2).transpose(1, 2)
            case "patches and channels":
                return x.reshape(len(x), -1, x.shape[1])
            case "columns first":
                return x.transpose(2, 3).flatten(2).transpose(1, 2)
        raise ValueError(fault)

    def finish(self, x: Tensor, fault: str) -> Tensor:
        """Logits of tokens (B, S, C)."""
        if fault == "no norm":
            return self.verdict(x.mean(1))
        if fault == "mean before the norm":
            return self.verdict(self.last_gauge(x.mean(1)))
        if fault == "class token":
            x = torch.cat([self.extra_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = self.last_gauge(x)
        match fault:
            case "" | "class token":
                return self.verdict(x.mean(1))
            case "mean over the channels":
                return self.verdict(x.mean(2))
            case "maximum":
                return self.verdict(x.amax(1))
            case "sum":
                return self.verdict(x.sum(1))
            case "first token":
                return self.verdict(x[:, 0])
            case "softmax":
                return self.verdict(x.mean(1)).softmax(-1)
            case "temperature":
                return self.verdict(x.mean(1)) / 0.07
            case "classes in another order":
                return self.verdict(x.mean(1)).flip(1)
        raise ValueError(fault)


def tf32(x: Tensor) -> Tensor:
    """Numbers rounded to the 11 significant bits of TF32."""
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(fraction * 2**11), exponent - 11)
