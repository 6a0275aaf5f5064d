"""ModelConfig, the architecture of one MLP-Mixer, and the list of its layers from which everything else is derived."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mixer_common.config.fields import check_fields, from_dict
from mixer_common.errors import UserError


class ImageSize(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int


_SQUARE_32 = ImageSize(32, 32)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one Mixer: everything that decides the function from pixels and weights to logits.

    image_size may be given as one number, for square images. The comments beside the fields are their --help.

    Raises UserError where a size is not positive, does not divide, or a choice is unknown.
    """

    image_size: ImageSize = _SQUARE_32  # Height and width of the images in pixels; one number means a square.
    patch_size: int = 4  # Side of a square patch in pixels; it must divide the height and the width of the image.
    num_classes: int = 10  # Number of classes; in training, the data set decides it.
    hidden_dim: int = 64  # Number of channels of every token, C in the paper.
    num_blocks: int = 2  # Number of Mixer blocks; each mixes tokens, then channels.
    tokens_mlp_dim: int = 32  # Hidden width of the token-mixing MLP, the first one of a block.
    channels_mlp_dim: int = 256  # Hidden width of the channel-mixing MLP, the second one of a block.
    block: Literal["mixer", "tutorial"] = "mixer"  # The paper's block, or that of the tutorial "MLP-Mixer in PyTorch".
    gelu: Literal["exact", "tanh"] = "exact"  # The activation function: x · Φ(x), or its tanh approximation.
    layer_norm_epsilon: float = 1e-5  # Number that every LayerNorm adds to the variance.
    init: Literal["pytorch", "flax"] = "pytorch"  # The framework whose default distributions give the first weights.
    stochastic_depth: float = 0.0  # Drop rate of the last block; it rises linearly from 0 in the first. 0: no drops.

    def __post_init__(self):
        object.__setattr__(self, "image_size", checked_image_size(self.image_size))
        check_fields(self)
        for name in ("patch_size", "num_classes", "hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for size in self.image_size:
            if size % self.patch_size:
                raise UserError(
                    f"image_size {size} is not a multiple of patch_size {self.patch_size}: "
                    "choose sizes where the patch divides the image."
                )
        if not 0 < self.layer_norm_epsilon < 1:
            raise UserError(f"layer_norm_epsilon is {self.layer_norm_epsilon}, but must lie between 0 and 1.")
        if not 0 <= self.stochastic_depth < 1:
            raise UserError(
                f"stochastic_depth is {self.stochastic_depth}, but a drop rate must be at least 0 and below 1."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """S, the number of tokens."""
        return math.prod(self.grid)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in weight_shapes(self).values())


def checked_image_size(value: Any) -> ImageSize:
    """An image size of one whole number, for a square, or of two. Raises UserError where it is neither or too small."""
    sizes = (value, value) if isinstance(value, int | np.integer) else ()
    sizes = tuple(value) if isinstance(value, list | tuple) else sizes
    sizes = tuple(size.item() if isinstance(size, np.integer) else size for size in sizes)
    if len(sizes) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise UserError(f"image_size is {value!r}, but must be height and width, whole numbers.")
    for size in sizes:
        if size < 1:
            raise UserError(f"image_size is {size}, but must be at least 1.")
    return ImageSize(*sizes)


def squarest_image(num_patches: int, patch_size: int) -> ImageSize:
    """The most nearly square image of so many patches, no higher than wide."""
    rows = next(rows for rows in range(math.isqrt(num_patches), 0, -1) if num_patches % rows == 0)
    return ImageSize(rows * patch_size, num_patches // rows * patch_size)


def model_config_from_json(values: Any, origin: str) -> ModelConfig:
    """The config from what `dataclasses.asdict` became in JSON, also an older version's; `origin` names the file in
    errors.

    Until version 0.1, image_size was the height, and image_width the width, or 0 for a square.
    """
    if isinstance(values, dict) and isinstance(values.get("image_width"), int):
        height, width = values.get("image_size"), values["image_width"]
        values = {name: value for name, value in values.items() if name != "image_width"}
        values["image_size"] = [height, width or height]
    return from_dict(ModelConfig, values, origin)


@dataclass(frozen=True)
class Layer:
    """One step of the network: what it computes, its weights, and the activation that it leaves."""

    name: str  # of its activation, and before ".weight" and ".bias" in the names of its weights
    kind: Literal["stem", "norm", "linear", "gelu", "residual", "pool"]
    activation: tuple[int, ...]  # shape for one image
    terms: int  # summands in one of its sums, 1 where it sums nothing; rounding errors grow with their root
    weight: tuple[int, ...] | None = None  # canonical shape; the bias is as long as its first axis; None: no weights
    over_patches: bool = False  # it sums over the patches of each channel, not over the channels of each patch

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its weight and bias; empty where it has none."""
        return {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.weight[:1]} if self.weight else {}

    @property
    def activation_size(self) -> int:
        """Numbers in the activation of one image."""
        return math.prod(self.activation)

    @property
    def matmul_flops(self) -> int:
        """Floating-point operations of its product for one image: (m, k) times (k, n) has 2·m·n·k."""
        if self.weight is None or self.kind == "norm":
            return 0
        return 2 * self.activation_size * math.prod(self.weight[1:])


def layers(config: ModelConfig) -> Iterator[Layer]:
    """Every layer that leaves an activation, in network order: the one list of what the network consists of."""
    C, S, P = config.hidden_dim, config.num_patches, config.patch_size
    tutorial = config.block == "tutorial"
    yield Layer("stem", "stem", (S, C), 3 * P**2, (C, 3, P, P))
    for i in range(config.num_blocks):
        # The tutorial normalises over the patches, and its first MLP acts on the channels.
        for norm, mlp, hidden, norm_over_patches, mlp_over_patches in (
            ("token_norm", "token_mixing", config.tokens_mlp_dim, tutorial, not tutorial),
            ("channel_norm", "channel_mixing", config.channels_mlp_dim, False, False),
        ):
            size, width = S if norm_over_patches else C, S if mlp_over_patches else C
            inside = (hidden, C) if mlp_over_patches else (S, hidden)
            name = f"blocks.{i}.{mlp}"
            yield Layer(f"blocks.{i}.{norm}", "norm", (S, C), size, (size,), norm_over_patches)
            yield Layer(f"{name}.fc1", "linear", inside, width, (hidden, width), mlp_over_patches)
            yield Layer(f"{name}.gelu", "gelu", inside, 1)
            yield Layer(f"{name}.fc2", "linear", (S, C), hidden, (width, hidden), mlp_over_patches)
            yield Layer(name, "residual", (S, C), 1)
    yield Layer("norm", "norm", (S, C), C, (C,))
    yield Layer("pool", "pool", (C,), S, over_patches=True)
    yield Layer("head", "linear", (config.num_classes,), C, (config.num_classes, C))


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the canonical weights, in network order: the `state_dict` of the PyTorch model.

    `stem.weight` is (out, in, height, width), a linear `weight` (out, in), everything else one axis.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers(config):
        shapes |= layer.weight_shapes
    return shapes


def activation_names(config: ModelConfig) -> list[str]:
    """Names of the activations that both models record, in network order."""
    return [layer.name for layer in layers(config)]


def activation_bytes(config: ModelConfig, num_images: int) -> int:
    """About how many bytes of float32 activations a training step of so many images holds: those of the blocks."""
    sizes = sum(layer.activation_size for layer in layers(config) if layer.name.startswith("blocks."))
    return 4 * num_images * sizes


def describe_differences(a: ModelConfig, b: ModelConfig) -> str:
    """The fields in which two configs differ: "hidden_dim 64 in A, 128 in B"; empty where they are equal."""
    values: list[Mapping[str, Any]] = [vars(a), vars(b)]
    return "; ".join(
        f"{name} {value} in A, {values[1][name]} in B" for name, value in values[0].items() if value != values[1][name]
    )
