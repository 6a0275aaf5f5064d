"""TODO docstring."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, flax_rule

FORMATS = ("canonical", "npz", "msgpack", "timm", "lucidrains")

_LAYERS = (
    "stem",
    "blocks.{i}.token_norm",
    "blocks.{i}.token_mixing.fc1",
    "blocks.{i}.token_mixing.fc2",
    "blocks.{i}.channel_norm",
    "blocks.{i}.channel_mixing.fc1",
    "blocks.{i}.channel_mixing.fc2",
    "norm",
    "head",
)
# What the files call these layers: {leaf} is weight or bias, in Flax kernel, scale or bias; {i} is the block.
# lucidrains numbers a Sequential that begins with two layers: {i2} is block i, {n2} and {n4} follow n blocks.
NAMES: dict[str, tuple[str, ...]] = {
    "canonical": tuple(layer + ".{leaf}" for layer in _LAYERS),
    "npz": (  # google-research/vision_transformer, vit_jax/models_mixer.py; big_vision/models/mlp_mixer.py
        "stem/{leaf}",
        "MixerBlock_{i}/LayerNorm_0/{leaf}",
        "MixerBlock_{i}/token_mixing/Dense_0/{leaf}",
        "MixerBlock_{i}/token_mixing/Dense_1/{leaf}",
        "MixerBlock_{i}/LayerNorm_1/{leaf}",
        "MixerBlock_{i}/channel_mixing/Dense_0/{leaf}",
        "MixerBlock_{i}/channel_mixing/Dense_1/{leaf}",
        "pre_head_layer_norm/{leaf}",
        "head/{leaf}",
    ),
    "older npz": (  # what big_vision's `load` renames
        "embedding/{leaf}",
        "Mixer/encoderblock_{i}/LayerNorm_0/{leaf}",
        "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}1",
        "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}2",
        "Mixer/encoderblock_{i}/LayerNorm_1/{leaf}",
        "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}1",
        "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}2",
        "Mixer/encoder_norm/{leaf}",
        "head/{leaf}",
    ),
    "timm": (  # timm/models/mlp_mixer.py, class MlpMixer
        "stem.proj.{leaf}",
        "blocks.{i}.norm1.{leaf}",
        "blocks.{i}.mlp_tokens.fc1.{leaf}",
        "blocks.{i}.mlp_tokens.fc2.{leaf}",
        "blocks.{i}.norm2.{leaf}",
        "blocks.{i}.mlp_channels.fc1.{leaf}",
        "blocks.{i}.mlp_channels.fc2.{leaf}",
        "norm.{leaf}",
        "head.{leaf}",
    ),
    "lucidrains": (  # mlp_mixer_pytorch, MLPMixer
        "1.{leaf}",
        "{i2}.0.norm.{leaf}",
        "{i2}.0.fn.0.{leaf}",
        "{i2}.0.fn.3.{leaf}",
        "{i2}.1.norm.{leaf}",
        "{i2}.1.fn.0.{leaf}",
        "{i2}.1.fn.3.{leaf}",
        "{n2}.{leaf}",
        "{n4}.{leaf}",
    ),
}
# What a file may have around the weights' tree; beside it lies what training kept, such as the optimizer's state.
WRAPPINGS = ("", "params/", "params/params/", "target/", "target/params/", "opt/target/", "optimizer/target/")

# What each format's own model computes with, since its files do not say.
DETAILS: dict[str, dict[str, Any]] = {
    "canonical": {name: getattr(ModelConfig, name) for name in ("gelu", "layer_norm_epsilon", "init")},
    "npz": {"gelu": "tanh", "layer_norm_epsilon": 1e-6, "init": "flax"},
    "msgpack": {"gelu": "tanh", "layer_norm_epsilon": 1e-6, "init": "flax"},
    "timm": {"gelu": "exact", "layer_norm_epsilon": 1e-6, "init": "pytorch"},
    "lucidrains": {"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"},
}


def to_format(weights: ModelWeights, format: str) -> dict[str, np.ndarray]:
    """The arrays under the names and in the layouts of `format`; views but for lucidrains' stem.

    Raises UserError for an unknown format, and for the tutorial's block in any but the canonical form.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}.")
    if format != "canonical" and weights.config.block == "tutorial":
        raise UserError(
            f"the {format} format has no tutorial block, whose first half normalises over the patches: "
            "write it as canonical."
        )
    return renamed("npz" if format == "msgpack" else format, "", weights.arrays, weights.config.num_blocks)


def file_name(naming: str, prefix: str, name: str, num_blocks: int) -> str:
    """What the file calls a canonical name."""
    layer, leaf = name.rsplit(".", 1)
    index = re.search(r"\.(\d+)\.", layer)
    i = int(index[1]) if index else 0
    at = _LAYERS.index(re.sub(r"\.\d+\.", ".{i}.", layer))
    if naming.endswith("npz") and leaf == "weight":
        leaf = "scale" if "norm" in layer else "kernel"
    return prefix + NAMES[naming][at].format(leaf=leaf, i=i, i2=i + 2, n2=num_blocks + 2, n4=num_blocks + 4)


def file_shapes(naming: str, prefix: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What the file calls the arrays of such a model, and their shapes there."""
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in weight_shapes(config).items()}
    return {name: array.shape for name, array in renamed(naming, prefix, empty, config.num_blocks).items()}


def renamed(naming: str, prefix: str, canonical: Mapping[str, np.ndarray], num_blocks: int) -> dict[str, np.ndarray]:
    return {
        file_name(naming, prefix, name, num_blocks): to_layout(naming, name, array) for name, array in canonical.items()
    }


def to_layout(naming: str, name: str, array: np.ndarray) -> np.ndarray:
    if naming.endswith("npz"):
        return array.transpose(flax_rule(name, array.ndim)[1])
    if naming == "lucidrains" and array.ndim == 4:
        return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    if naming == "lucidrains" and array.ndim == 2 and "token_mixing" in name:
        return array[:, :, None]
    return array


def from_layout(naming: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The way back, into the canonical `shape`."""
    if naming.endswith("npz"):
        return array.transpose(np.argsort(flax_rule(name, len(shape))[1]))
    if naming == "lucidrains" and len(shape) == 4:
        return array.reshape(shape[0], *shape[2:], shape[1]).transpose(0, 3, 1, 2)
    return array.reshape(shape)


def accepted_layout(naming: str, name: str, array: np.ndarray) -> np.ndarray:
    """What the format's own reader accepts besides: singleton axes, a Linear in place of a Conv1d."""
    if naming == "older npz" and re.search(r"_mixing_phase_0/", name):
        axes = 1 if re.search(r"bias\d$", name) else 2
        extra = [axis for axis, size in enumerate(array.shape) if size == 1][: max(array.ndim - axes, 0)]
        return array.squeeze(tuple(extra))
    if naming == "lucidrains" and array.ndim == 2 and re.search(r"\.0\.fn\.\d\.weight$", name):
        return array[:, :, None]
    return array
