"""A port in Flax Linen with names of its own, into whose parts the mistakes of real ports can be planted.

Twin of faulty_torch.py: the same faults by the same names.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import rsqrt, stop_gradient

from mixer_common.config.model import ModelConfig

MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


class Shred(nn.Module):
    """A convolution whose stride is its kernel."""

    features: int
    patch: int
    fault: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        P, dtype = self.patch, x.dtype
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (P, P, 3, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        filters = kernel.transpose(3, 2, 0, 1)  # O, I, H, W
        match self.fault:
            case "H,W,I,O read as O,I,H,W":
                filters = kernel.reshape(filters.shape)
            case "filters transposed":
                filters = filters.swapaxes(2, 3)
            case "colours last":
                filters = filters.transpose(0, 2, 3, 1).reshape(filters.shape)
            case "no bias":
                bias = jnp.zeros_like(bias)
            case "bfloat16":
                x, filters, bias = (value.astype(jnp.bfloat16) for value in (x, filters, bias))
            case fault if fault:
                raise ValueError(fault)
        y = jax.lax.conv_general_dilated(x, filters, (P, P), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC"))
        return (y + bias).astype(dtype)


class Gauge(nn.Module):
    """A norm over the last axis."""

    fault: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, eps = x.shape[-1], 1e-5
        scale = self.param("scale", nn.initializers.ones, (n,))
        bias = self.param("bias", nn.initializers.zeros, (n,))

        def norm(axis=-1, correction=0, eps=eps) -> Array:
            return (x - x.mean(axis, keepdims=True)) * rsqrt(x.var(axis, keepdims=True, ddof=correction) + eps)

        match self.fault:
            case "":
                return norm() * scale + bias
            case "unbiased variance":
                return norm(correction=1) * scale + bias
            case "epsilon outside the root":
                return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) * scale + bias
            case "other epsilon":
                return norm(eps=1e-3) * scale + bias
            case "over the patches":
                return norm(1) * scale + bias
            case "over everything":
                return norm((1, 2)) * scale + bias
            case "no mean":
                return x * rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * scale + bias
            case "no bias":
                return norm() * scale
            case "statistics detached":
                mean, inverse = x.mean(-1, keepdims=True), rsqrt(x.var(-1, keepdims=True) + eps)
                return (x - stop_gradient(mean)) * stop_gradient(inverse) * scale + bias
            case "float16":
                x = x.astype(jnp.float16).astype(x.dtype)
                return (norm() * scale + bias).astype(jnp.float16).astype(x.dtype)
        raise ValueError(self.fault)


class Dense(nn.Module):
    """A linear layer over the last axis."""

    features: int
    fault: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        match self.fault:
            case "":
                return x @ kernel + bias
            case "transposed":
                return x @ kernel.T + bias
            case "reshaped":
                return x @ kernel.T.reshape(kernel.shape) + bias
            case "no bias":
                return x @ kernel
            case "bfloat16" | "float16" | "float32":
                return (x.astype(self.fault) @ kernel.astype(self.fault) + bias.astype(self.fault)).astype(x.dtype)
            case "TF32":
                return tf32(x) @ tf32(kernel) + bias
            case "weight detached":
                return x @ stop_gradient(kernel) + bias
            case "bias twice":
                return x @ kernel + 2 * bias
        raise ValueError(self.fault)


class Bend(nn.Module):
    """The activation function."""

    fault: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        match self.fault:
            case "":
                return nn.gelu(x, approximate=False)
            case "tanh":
                return nn.gelu(x)
            case "ReLU":
                return nn.relu(x)
            case "SiLU":
                return nn.silu(x)
            case "sigmoid":
                return x * nn.sigmoid(1.702 * x)
            case "none":
                return x
            case "dropout":
                return nn.Dropout(0.25, deterministic=False)(nn.gelu(x, approximate=False))
            case "derivative of tanh":
                y = nn.gelu(x)
                return y + stop_gradient(nn.gelu(x, approximate=False) - y)
            case "derivative without density":
                return halved(x)
        raise ValueError(self.fault)


@jax.custom_vjp
def halved(x: Array) -> Array:
    """GELU with a way back that forgets a term."""
    return nn.gelu(x, approximate=False)


halved.defvjp(lambda x: (halved(x), x), lambda x, gradient: (gradient * jax.scipy.stats.norm.cdf(x),))


class Branch(nn.Module):
    """Two linear layers over the last axis, or over the axis before (`swap`)."""

    size: int
    width: int
    swap: bool
    faults: Mapping[str, str]
    place: str

    def setup(self):
        self.wide = Dense(self.width, self.faults.get(f"{self.place}.wide", ""))
        self.bend = Bend(self.faults.get(f"{self.place}.bend", ""))
        self.narrow = Dense(self.size, self.faults.get(f"{self.place}.narrow", ""))

    def __call__(self, x: Array) -> Array:
        fault = self.faults.get(self.place, "")
        if not self.swap or fault == "over the channels":
            return self.narrow(self.bend(self.wide(x)))
        B, S, C = x.shape
        x = x.reshape(B, C, S) if fault == "reshaped in" else x.swapaxes(1, 2)
        x = self.narrow(self.bend(self.wide(x)))
        return x.reshape(B, S, C) if fault == "reshaped out" else x.swapaxes(1, 2)


class Half(nn.Module):
    """A norm, a branch and the residual connection."""

    size: int
    width: int
    swap: bool
    faults: Mapping[str, str]
    place: str

    def setup(self):
        self.gauge = Gauge(self.faults.get(f"{self.place}.gauge", ""))
        self.branch = Branch(self.size, self.width, self.swap, self.faults, f"{self.place}.branch")

    def __call__(self, x: Array) -> Array:
        match self.faults.get(self.place, ""):
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
                return x + jnp.linspace(0.1, 1.3, x.shape[-1]).astype(x.dtype) * self.branch(self.gauge(x))
            case "dropout":
                keep = jax.random.bernoulli(self.make_rng("dropout"), 0.9, x.shape)
                return x + self.branch(self.gauge(x)) * keep / 0.9
            case "stochastic depth":
                keep = jnp.array([1.0, 0.0] * len(x), x.dtype)[: len(x), None, None]
                return x + self.branch(self.gauge(x)) * keep / 0.8
            case "branch detached":
                return x + stop_gradient(self.branch(self.gauge(x)))
            case "branch detached at its input":
                return x + self.branch(self.gauge(stop_gradient(x)))
            case "stream detached":
                return stop_gradient(x) + self.branch(self.gauge(x))
        raise ValueError(self.faults[self.place])


class Stack(nn.Module):
    """One block."""

    patches: int
    channels: int
    tokens: int
    width: int
    faults: Mapping[str, str]
    place: str

    def setup(self):
        self.across = Half(self.patches, self.tokens, True, self.faults, f"{self.place}.across")
        self.along = Half(self.channels, self.width, False, self.faults, f"{self.place}.along")

    def __call__(self, x: Array) -> Array:
        match self.faults.get(self.place, ""):
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
        raise ValueError(self.faults[self.place])


class Port(nn.Module):
    """Takes pixels (B, H, W, 3). faults: by the part that they are planted in, a submodule's path or a stage.

    given: pixels (B, H, W, 3) that a pipeline of its own made.
    """

    config: ModelConfig
    faults: Mapping[str, str]
    given: Any = None

    def setup(self):
        config = self.config
        sizes = config.num_patches, config.hidden_dim, config.tokens_mlp_dim, config.channels_mlp_dim
        self.shred = Shred(config.hidden_dim, config.patch_size, self.faults.get("shred", ""))
        self.pile = [Stack(*sizes, self.faults, f"pile.{i}") for i in range(config.num_blocks)]
        self.last_gauge = Gauge(self.faults.get("last_gauge", ""))
        self.verdict = Dense(config.num_classes, self.faults.get("verdict", ""))
        if self.faults.get("tail") == "class token":
            self.extra_token = self.param("extra_token", lambda _: jnp.linspace(-1, 1, config.hidden_dim)[None, None])

    def __call__(self, images: Array) -> Array:
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

    def rescale(self, x: Array, fault: str) -> Array:
        """Pixels (B, H, W, 3) from -1 to 1 as the stem takes them."""
        B, H, W, _ = x.shape
        match fault:
            case "":
                return x
            case "0 to 1":
                return (x + 1) / 2
            case "0 to 255":
                return (x + 1) * 127.5
            case "ImageNet":
                return ((x + 1) / 2 - MEAN.astype(x.dtype)) / STD.astype(x.dtype)
            case "own numbers":
                return ((x + 1) / 2 - 0.3) / 0.7
            case "BGR":
                return x[..., ::-1]
            case "N,H,W,C read as N,C,H,W":
                return x.reshape(B, 3, H, W).transpose(0, 2, 3, 1)
            case "rows and columns":
                return x.swapaxes(1, 2)
            case "given":
                return jnp.asarray(self.given, x.dtype)
        raise ValueError(fault)

    def embed(self, x: Array, fault: str) -> Array:
        """Tokens (B, S, C) of pixels."""
        x = self.shred(x)
        B, _, _, C = x.shape
        match fault:
            case "":
                return x.reshape(B, -1, C)
            case "patches and channels":
                return x.transpose(0, 3, 1, 2).reshape(B, -1, C)
            case "columns first":
                return x.swapaxes(1, 2).reshape(B, -1, C)
        raise ValueError(fault)

    def finish(self, x: Array, fault: str) -> Array:
        """Logits of tokens (B, S, C)."""
        if fault == "no norm":
            return self.verdict(x.mean(1))
        if fault == "mean before the norm":
            return self.verdict(self.last_gauge(x.mean(1)))
        if fault == "class token":
            x = jnp.concatenate([jnp.broadcast_to(self.extra_token, (len(x), 1, x.shape[-1])), x], 1)
        x = self.last_gauge(x)
        match fault:
            case "" | "class token":
                return self.verdict(x.mean(1))
            case "mean over the channels":
                return self.verdict(x.mean(2))
            case "maximum":
                return self.verdict(x.max(1))
            case "sum":
                return self.verdict(x.sum(1))
            case "first token":
                return self.verdict(x[:, 0])
            case "softmax":
                return nn.softmax(self.verdict(x.mean(1)))
            case "temperature":
                return self.verdict(x.mean(1)) / 0.07
            case "classes in another order":
                return self.verdict(x.mean(1))[:, ::-1]
        raise ValueError(fault)


def build(config: ModelConfig, faults: Mapping[str, str]):
    """The module with the faults, and variables that the module without any draws, so that none is missing."""
    images = jnp.zeros((1, *config.image_size, 3))
    whole = {"tail": "class token"} if faults.get("tail") == "class token" else {}
    return Port(config, faults), Port(config, whole).init(jax.random.key(0), images)


def tf32(x: Array) -> Array:
    """Numbers rounded to the 11 significant bits of TF32."""
    fraction, exponent = jnp.frexp(x)
    return jnp.ldexp(jnp.round(fraction * 2**11), exponent - 11)
