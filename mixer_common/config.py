"""MixerConfig: one MLP-Mixer architecture, and the named ones.

Sizes of the paper's models: Tolstikhin et al. 2021, arXiv 2105.01601, table 1. The authors' code
(tanh GELU, LayerNorm epsilon 1e-6, lecun-normal weights with a zero head) is the source of their details.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from mixer_common.errors import UserError
from mixer_common.fields import check_fields


@dataclass(frozen=True)
class MixerConfig:
    """Everything that decides the function from pixels and weights to logits.

    Raises UserError where a size is not positive, does not divide, or a choice is unknown.
    """

    image_size: int = 32  # pixels: the height, and the width where image_width does not say otherwise
    image_width: int = 0  # pixels; 0: as wide as high
    patch_size: int = 4  # pixels; divides height and width
    num_classes: int = 10  # in training, the data set's
    hidden_dim: int = 64  # C, the channels of every token
    num_blocks: int = 2  # each mixes tokens, then channels
    tokens_mlp_dim: int = 32  # hidden width of the block's first MLP
    channels_mlp_dim: int = 256  # hidden width of the block's second MLP
    block: Literal["mixer", "tutorial"] = "mixer"  # the paper's, or the tutorial's
    gelu: Literal["exact", "tanh"] = "exact"  # x · Φ(x), or its tanh approximation
    layer_norm_epsilon: float = 1e-5  # added to the variance
    init: Literal["pytorch", "flax"] = "pytorch"  # whose default distribution the weights start from
    stochastic_depth: float = 0.0  # drop rate of the last block; grows linearly from 0 in the first

    def __post_init__(self):
        check_fields(self)
        for name in ("image_size", "patch_size", "num_classes", "hidden_dim", "num_blocks",
                     "tokens_mlp_dim", "channels_mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.image_width < 0:
            raise UserError(f"image_width is {self.image_width}, but must be at least 1, or 0 for a square image.")
        for name in ("image_size", "image_width"):
            if getattr(self, name) % self.patch_size:
                raise UserError(f"{name} {getattr(self, name)} is not a multiple of patch_size {self.patch_size}: "
                                "choose sizes where the patch divides the image.")
        if not 0 < self.layer_norm_epsilon < 1:
            raise UserError(f"layer_norm_epsilon is {self.layer_norm_epsilon}, "
                            "but must lie between 0 and 1.")
        if not 0 <= self.stochastic_depth < 1:
            raise UserError(f"stochastic_depth is {self.stochastic_depth}, "
                            "but a drop rate must be at least 0 and below 1.")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.image_size, self.image_width or self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """S, the number of tokens."""
        return math.prod(self.grid)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in weight_shapes(self).values())


_TUTORIAL = MixerConfig(block="tutorial")


def _paper(patch_size: int, num_blocks: int, hidden_dim: int) -> MixerConfig:
    return MixerConfig(image_size=224, patch_size=patch_size, num_classes=1000, num_blocks=num_blocks,
                       hidden_dim=hidden_dim, tokens_mlp_dim=hidden_dim // 2, channels_mlp_dim=4 * hidden_dim,
                       gelu="tanh", layer_norm_epsilon=1e-6, init="flax")


MODELS: dict[str, MixerConfig] = {
    "tutorial": _TUTORIAL,
    "tiny": replace(_TUTORIAL, block="mixer"),
    "nano": MixerConfig(hidden_dim=128, num_blocks=8, tokens_mlp_dim=96, channels_mlp_dim=256,
                        gelu="tanh", layer_norm_epsilon=1e-6, init="flax"),
    "s32": _paper(32, 8, 512),
    "s16": _paper(16, 8, 512),
    "b32": _paper(32, 12, 768),
    "b16": _paper(16, 12, 768),
    "l32": _paper(32, 24, 1024),
    "l16": _paper(16, 24, 1024),
    "h14": _paper(14, 32, 1280),
    "strong": MixerConfig(hidden_dim=384, num_blocks=12, tokens_mlp_dim=256, channels_mlp_dim=1024, gelu="tanh",
                          layer_norm_epsilon=1e-6, init="flax", stochastic_depth=0.1),
}


def model_name(config: MixerConfig) -> str:
    """The named model of these sizes, whatever its classes and details of its functions; else "custom"."""
    sizes = ("image_size", "image_width", "patch_size", "hidden_dim", "num_blocks", "tokens_mlp_dim",
             "channels_mlp_dim", "block")
    return next((name for name, model in MODELS.items()
                 if all(getattr(model, size) == getattr(config, size) for size in sizes)), "custom")


def weight_shapes(config: MixerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the canonical weights, in network order: the `state_dict` of the PyTorch model.

    `stem.weight` is (out, in, height, width), a linear `weight` (out, in), everything else one axis.
    """
    C, S = config.hidden_dim, config.num_patches
    # The tutorial normalises over the patches, and its first MLP acts on the channels.
    token_norm, mixed = (S, C) if config.block == "tutorial" else (C, S)
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (C, 3, config.patch_size, config.patch_size), "stem.bias": (C,)}
    for i in range(config.num_blocks):
        for norm, size, mlp, width, hidden in (
                ("token_norm", token_norm, "token_mixing", mixed, config.tokens_mlp_dim),
                ("channel_norm", C, "channel_mixing", C, config.channels_mlp_dim)):
            shapes |= {
                f"blocks.{i}.{norm}.weight": (size,), f"blocks.{i}.{norm}.bias": (size,),
                f"blocks.{i}.{mlp}.fc1.weight": (hidden, width), f"blocks.{i}.{mlp}.fc1.bias": (hidden,),
                f"blocks.{i}.{mlp}.fc2.weight": (width, hidden), f"blocks.{i}.{mlp}.fc2.bias": (width,)}
    return shapes | {"norm.weight": (C,), "norm.bias": (C,),
                     "head.weight": (config.num_classes, C), "head.bias": (config.num_classes,)}


def activation_names(config: MixerConfig) -> list[str]:
    """Names of the activations that both models record, in network order."""
    names = ["stem"]
    for i in range(config.num_blocks):
        for norm, mlp in (("token_norm", "token_mixing"), ("channel_norm", "channel_mixing")):
            names += [f"blocks.{i}.{norm}", f"blocks.{i}.{mlp}.fc1", f"blocks.{i}.{mlp}.gelu",
                      f"blocks.{i}.{mlp}.fc2", f"blocks.{i}.{mlp}"]
    return [*names, "norm", "pool", "head"]
