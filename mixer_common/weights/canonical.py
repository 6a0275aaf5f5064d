"""Names and layouts of weights: the canonical form, Flax's, and those of other Mixers' files.

The canonical form is a flat dict of NumPy arrays with the PyTorch model's names and layouts; weights,
gradients and optimizer moments all have it. Transposing moves values, it never changes a bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError

# canonical layout -> Flax: last part of the name, and the axes in Flax's order.
_STEM = ("kernel", (2, 3, 1, 0))  # O,I,H,W -> H,W,I,O
_LINEAR = ("kernel", (1, 0))  # out,in -> in,out
_NORM = ("scale", (0,))
_BIAS = ("bias", (0,))


@dataclass(frozen=True)
class ModelWeights:
    """A model's weights, and what is known of the model."""

    config: ModelConfig
    arrays: dict[str, np.ndarray]  # canonical, in the order of weight_shapes(config); may be views
    format: str  # one of FORMATS: where they come from
    assumed: tuple[str, ...] = ()  # fields of the config that the file does not tell and nobody stated


def describe_assumed(weights: ModelWeights) -> str:
    """What was taken for granted of the model, for people; empty where the file tells everything."""
    config = weights.config
    height, width = config.image_size
    words = {
        "gelu": f"gelu {config.gelu}",
        "layer_norm_epsilon": f"layer_norm_epsilon {config.layer_norm_epsilon:g}",
        "image_size": f"images {height}x{width}",
        "block": f"block {config.block}",
    }
    return ", ".join(text for name, text in words.items() if name in weights.assumed)


def flax_rule(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """The Flax path ("blocks.0.norm.scale") of a canonical name, and the axes that transpose into it."""
    parent, leaf = name.rsplit(".", 1)
    last, axes = _BIAS if leaf == "bias" else {4: _STEM, 2: _LINEAR, 1: _NORM}[ndim]
    return f"{parent}.{last}", axes


def to_flax(canonical: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical arrays under Flax's names and in Flax's layouts; views, no copies."""
    flax = {}
    for name, array in canonical.items():
        path, axes = flax_rule(name, array.ndim)
        flax[path] = array.transpose(axes)
    return flax


def from_flax(flax: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The way back, in the order of `shapes` (canonical names and shapes); contiguous arrays."""
    canonical = {}
    for name, shape in shapes.items():
        path, axes = flax_rule(name, len(shape))
        canonical[name] = np.ascontiguousarray(np.asarray(flax[path]).transpose(np.argsort(axes)))
    return canonical


def check_weights(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises one UserError that lists every missing, extra or misshapen array; `what` names their origin."""
    if wrong := misfits(arrays, shapes):
        raise UserError(f"{what} does not fit the model: {'; '.join(wrong)}.")


def misfits(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    wrong += [f"{name} is not expected" for name in arrays if name not in shapes]
    return wrong + [
        f"{name} has shape {arrays[name].shape} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != tuple(shape)
    ]


def with_details(weights: ModelWeights, where: str, **overrides: Any) -> ModelWeights:
    """The same weights with other details, and another shape for as many patches. UserError if it is not."""
    config = replace(weights.config, **overrides)
    if config.num_patches != weights.config.num_patches:
        height, width = config.image_size
        raise UserError(
            f"{where} mixes {weights.config.num_patches} patches of {config.patch_size} pixels, but an "
            f"image of {height}x{width} has {config.num_patches}: state a height and a width that give "
            "as many."
        )
    return replace(weights, config=config)


def replace_head(weights: ModelWeights, num_classes: int) -> ModelWeights:
    """A head for other classes, all zero as the authors start a fine-tuning (arXiv 2105.01601, appendix)."""
    config = replace(weights.config, num_classes=num_classes)
    dtype = weights.arrays["head.weight"].dtype
    shapes = weight_shapes(config)
    return replace(
        weights,
        config=config,
        arrays=weights.arrays | {name: np.zeros(shapes[name], dtype) for name in ("head.weight", "head.bias")},
    )
