"""MLP-Mixer in PyTorch (Tolstikhin et al. 2021, arXiv 2105.01601), and the tutorial's variant of it.

Twin of mixer_jax/model.py. Shapes: B images, S patches, C channels.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.weights.canonical import check_weights

Record = Callable[[str, Tensor], None]


def ignore(name: str, value: Tensor) -> None:
    """Records nothing."""


class Stem(nn.Conv2d):
    """Patch embedding: a convolution whose kernel is its stride, (B, H, W, 3) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__(3, config.hidden_dim, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis, or over the axis before it (`over_tokens`)."""

    def __init__(self, size: int, hidden: int, gelu: str, over_tokens: bool):
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)
        self.gelu, self.over_tokens = gelu, over_tokens

    def forward(self, x: Tensor, record: Record) -> Tensor:
        hidden = self.fc1(self.turned(x))
        record("fc1", self.turned(hidden))
        hidden = F.gelu(hidden, approximate="tanh" if self.gelu == "tanh" else "none")
        record("gelu", self.turned(hidden))
        y = self.turned(self.fc2(hidden))
        record("fc2", y)
        return y

    def turned(self, x: Tensor) -> Tensor:
        # On the way in and on the way out, so that all between are rows: where the middle axis is contracted
        # instead, the weights' gradient is one product for every image, and the whole takes half as long again.
        return x.transpose(1, 2) if self.over_tokens else x


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels, or over the patches (`over_tokens`, the tutorial's)."""

    def __init__(self, size: int, epsilon: float, over_tokens: bool = False):
        super().__init__(size, eps=epsilon)
        self.over_tokens = over_tokens

    def forward(self, x: Tensor) -> Tensor:
        if self.over_tokens:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return super().forward(x)


class Block(nn.Module):
    """x + token_mixing(norm(x)), then x + channel_mixing(norm(x)); (B, S, C) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, S, epsilon = config.hidden_dim, config.num_patches, config.layer_norm_epsilon
        tutorial = config.block == "tutorial"
        self.token_norm = LayerNorm(S if tutorial else C, epsilon, over_tokens=tutorial)
        self.token_mixing = Mlp(C if tutorial else S, config.tokens_mlp_dim, config.gelu, over_tokens=not tutorial)
        self.channel_norm = LayerNorm(C, epsilon)
        self.channel_mixing = Mlp(C, config.channels_mlp_dim, config.gelu, over_tokens=False)

    def forward(self, x: Tensor, drop_path: Tensor | None, record: Record) -> Tensor:
        for i, (norm, mlp) in enumerate((("token_norm", "token_mixing"), ("channel_norm", "channel_mixing"))):
            y = getattr(self, norm)(x)
            record(norm, y)
            y = getattr(self, mlp)(y, _within(record, mlp))
            x = x + (y if drop_path is None else y * drop_path[i, :, None, None])
            record(mlp, x)
        return x


class Mixer(nn.Module):
    """The whole model. Its weights start as PyTorch's defaults; `build_model` loads the common start instead."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = LayerNorm(config.hidden_dim, config.layer_norm_epsilon)
        self.head = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, pixels: Tensor, drop_path: Tensor | None = None, record: Record = ignore) -> Tensor:
        """Logits (B, num_classes) of pixels (B, H, W, 3) in [-1, 1], in the dtype of both.

        drop_path: (num_blocks, 2, B), what every branch is multiplied with (see
        mixer_common.plan.drop_paths.drop_path_scales); None keeps all, as in evaluation.
        record: called with the name and value of every activation in network order
        (mixer_common.config.activation_names).
        """
        x = self.stem(pixels)
        record("stem", x)
        for i, block in enumerate(self.blocks):
            x = block(x, None if drop_path is None else drop_path[i], _within(record, f"blocks.{i}"))
        x = self.norm(x)
        record("norm", x)
        x = x.mean(dim=1)
        record("pool", x)
        logits = self.head(x)
        record("head", logits)
        return logits


def build_model(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Mixer:
    """A Mixer that holds the canonical weights, in `dtype` (None: as they are). UserError if they do not fit."""
    check_weights(weights, weight_shapes(config), "the set of weights")
    with torch.device("meta"):
        model = Mixer(config)
    # Contiguous, because torch.tensor keeps the strides of a transposed view.
    model.load_state_dict(
        {
            name: torch.tensor(np.ascontiguousarray(array), device=device, dtype=dtype)
            for name, array in weights.items()
        },
        assign=True,
    )
    return model.requires_grad_()


def to_canonical(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Canonical arrays of weights, gradients or moments under the model's parameter names; copies."""
    return {name: np.array(tensor.detach().cpu(), order="C") for name, tensor in tensors.items()}


def _within(record: Record, prefix: str) -> Record:
    return lambda name, value: record(f"{prefix}.{name}", value)
