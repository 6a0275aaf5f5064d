"""MLP-Mixer in PyTorch (Tolstikhin et al. 2021, arXiv 2105.01601), and the tutorial's variant of it.

Twin of mixer_jax/model.py. Shapes: B images, S patches, C channels.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.weights.canonical import check_weights
from mixer_common.weights.in_memory import check_pixels
from mixer_torch.hooks import Hooks, Recorder


class Stem(nn.Conv2d):
    """Patch embedding: a convolution whose kernel is its stride, (B, H, W, 3) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__(3, config.hidden_dim, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, Linear over the channels of each token, or over the tokens of each channel (`over_tokens`)."""

    def __init__(self, size: int, hidden: int, gelu: str, over_tokens: bool):
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)
        self.gelu, self.over_tokens = gelu, over_tokens

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        hidden = self.fc1(self._swap(x))  # (B, S, hidden), or over tokens (B, C, hidden)
        hidden = hooks.record("mixing.fc1", hidden, self.over_tokens)
        hidden = F.gelu(hidden, approximate="tanh" if self.gelu == "tanh" else "none")
        hidden = hooks.record("mixing.gelu", hidden, self.over_tokens)
        return hooks.record("mixing.fc2", self._swap(self.fc2(hidden)))  # (B, S, C)

    def _swap(self, x: Tensor) -> Tensor:
        # Once on the way in and once on the way out, as the paper's code does. Where the middle axis is contracted
        # instead, the weights' gradient is one product for every image, and the whole takes half as long again.
        return x.transpose(1, 2) if self.over_tokens else x


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels, or over the patches (`over_tokens`, the tutorial's)."""

    def __init__(self, size: int, epsilon: float, over_tokens: bool = False):
        super().__init__(size, eps=epsilon)
        self.over_tokens = over_tokens

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.over_tokens:
            return hooks.record("norm", super().forward(x.transpose(1, 2)).transpose(1, 2))
        return hooks.record("norm", super().forward(x))


class Block(nn.Module):
    """x + token_mixing(token_norm(x)), then x + channel_mixing(channel_norm(x)); (B, S, C) -> (B, S, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, S, epsilon = config.hidden_dim, config.num_patches, config.layer_norm_epsilon
        tutorial = config.block == "tutorial"
        self.token_norm = LayerNorm(S if tutorial else C, epsilon, over_tokens=tutorial)
        self.token_mixing = Mlp(C if tutorial else S, config.tokens_mlp_dim, config.gelu, over_tokens=not tutorial)
        self.channel_norm = LayerNorm(C, epsilon)
        self.channel_mixing = Mlp(C, config.channels_mlp_dim, config.gelu, over_tokens=False)

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        token, channel = hooks.branches()
        x = token.add(x, self.token_mixing(self.token_norm(x, token), token))  # (B, S, C)
        x = channel.add(x, self.channel_mixing(self.channel_norm(x, channel), channel))  # (B, S, C)
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

    def forward(self, pixels: Tensor, drop_path: Tensor | None = None, recorder: Recorder | None = None) -> Tensor:
        """Logits (B, num_classes) of pixels (B, H, W, 3) in [-1, 1], in the dtype of both.

        drop_path: (num_blocks, 2, B), what every branch is multiplied with (see
        mixer_common.plan.drop_paths.drop_path_scales); None drops nothing, as in evaluation.
        recorder: called with the name and value of every activation in network order
        (mixer_common.config.model.activation_names); the model goes on with what it returns.

        Raises UserError for whole numbers, and for images of another size than the config's.
        """
        check_pixels(pixels.shape, pixels.is_floating_point(), self.config)
        hooks = Hooks(recorder, drop_path)
        x = hooks.record("stem", self.stem(pixels))  # (B, S, C)
        for i, block in enumerate(self.blocks):
            x = block(x, hooks.block(i))  # (B, S, C)
        x = self.norm(x, hooks)  # (B, S, C)
        x = hooks.record("pool", x.mean(dim=1))  # (B, C)
        return hooks.record("head", self.head(x))  # (B, num_classes)


def build_model(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Mixer:
    """A Mixer that holds the canonical weights, in `dtype` (None: theirs), on the device (None: PyTorch's default).

    Raises UserError where the weights do not fit.
    """
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
