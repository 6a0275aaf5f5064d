"""The canonical form of weights, and the way to the Flax model's parameters and back.

The canonical form is a flat dict of NumPy arrays with the PyTorch model's names and layouts. Weights, gradients and
optimizer moments all have it. Transposing moves values and never changes a bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError

# The axes of a canonical weight in the order of Flax.
HWIO_AXES = (2, 3, 1, 0)  # a convolution: O,I,H,W -> H,W,I,O
IN_OUT_AXES = (1, 0)  # a linear layer: out,in -> in,out
# By the number of a weight's axes: the last part of its name in Flax, and its axes.
_FLAX_WEIGHTS = {4: ("kernel", HWIO_AXES), 2: ("kernel", IN_OUT_AXES), 1: ("scale", (0,))}


@dataclass(frozen=True)
class ModelWeights:
    """A model's weights and its architecture."""

    config: ModelConfig
    arrays: dict[str, np.ndarray]  # canonical, in the order of weight_shapes(config); may be views
    format: str  # a key of formats.FORMATS: the format of the file that they come from
    assumed: tuple[str, ...] = ()  # fields of the config, or "pixels", that neither the file nor the user stated
    notes: tuple[str, ...] = ()  # for people: what was read where there was a choice, and what else the file told
    names: Mapping[str, Any] = field(default_factory=dict)  # patterns.Names where the structure told them, else empty
    has_head: bool = True  # False: the file holds none, and that of `arrays` is one of zeros
    origin: str = ""  # the path that they come from, or an address that names this very content


def describe_assumed(weights: ModelWeights) -> str:
    """What is assumed, for people: fields of the config with their values, the pixels' scale; empty if nothing is."""
    config = weights.config
    height, width = config.image_size
    descriptions = {
        "gelu": f"gelu {config.gelu}",
        "layer_norm_epsilon": f"layer_norm_epsilon {config.layer_norm_epsilon:g}",
        "image_size": f"images {height}x{width}",
        "block": f"block {config.block}",
        "pixels": "pixels -1..1",
    }
    return ", ".join(text for name, text in descriptions.items() if name in weights.assumed)


def _flax_path(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """The Flax path ("blocks.0.norm.scale") of a canonical name, and the axes that transpose into it."""
    parent, leaf = name.rsplit(".", 1)
    last, axes = ("bias", (0,)) if leaf == "bias" else _FLAX_WEIGHTS[ndim]
    return f"{parent}.{last}", axes


def to_flax(canonical: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical arrays under the names and in the layouts of the Flax model; views, no copies."""
    flax = {}
    for name, array in canonical.items():
        path, axes = _flax_path(name, array.ndim)
        flax[path] = array.transpose(axes)
    return flax


def from_flax(flax: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The canonical arrays of a Flax model, contiguous, in the order of `shapes`, canonical names and shapes."""
    canonical = {}
    for name, shape in shapes.items():
        path, axes = _flax_path(name, len(shape))
        canonical[name] = np.ascontiguousarray(np.asarray(flax[path]).transpose(np.argsort(axes)))
    return canonical


def check_weights(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raises one UserError that lists every missing, extra or misshapen array; `origin` names the file in it."""
    if wrong := mismatches(arrays, shapes):
        raise UserError(f"{origin} does not fit the model: {'; '.join(wrong)}.")


def mismatches(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One clause for every array that is missing, extra, or of another shape than `shapes` says."""
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    wrong += [f"{name} is not expected" for name in arrays if name not in shapes]
    return wrong + [
        f"{name} has shape {arrays[name].shape} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != tuple(shape)
    ]


def with_details(weights: ModelWeights, origin: str, **details: Any) -> ModelWeights:
    """The same weights with other fields of the config: gelu, layer_norm_epsilon, block or image_size.

    Raises UserError where an image of the new size does not have as many patches; `origin` names the file in it.
    """
    config = replace(weights.config, **details)
    if config.num_patches != weights.config.num_patches:
        height, width = config.image_size
        raise UserError(
            f"{origin} mixes {weights.config.num_patches} patches of {config.patch_size} pixels, but an "
            f"image of {height}x{width} has {config.num_patches}: state a height and a width that give "
            "as many."
        )
    return replace(weights, config=config)


def replace_head(weights: ModelWeights, num_classes: int) -> ModelWeights:
    """The weights with a head of zeros for so many classes, as the paper's authors begin a fine-tuning.

    Source: arXiv 2105.01601, appendix.
    """
    config = replace(weights.config, num_classes=num_classes)
    dtype = weights.arrays["head.weight"].dtype
    shapes = weight_shapes(config)
    return replace(
        weights,
        config=config,
        has_head=True,
        arrays=weights.arrays | {name: np.zeros(shapes[name], dtype) for name in ("head.weight", "head.bias")},
    )
