"""The formats of weights that this project reads and writes: one entry of FORMATS for each.

To add a format, add an entry. It says:

- `description`: for people, the program whose format it is.
- `names`: the file's name of each layer of the canonical form.
- `layouts`: the layout of the weights that lie otherwise than in PyTorch's Linear and Conv2d.
- `details`: what the format's own model computes with, since the file does not tell it.
- `suffixes`: the endings of the files that it is written to.

Reading, writing, recognition and convert.py know it then; parity_tests/weights/test_formats.py has the tests that a
format needs: its own model and ours compute the same function, and its file comes back to the bit.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mixer_common.config.model import Layer, ModelConfig, layers, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import HWIO_AXES, IN_OUT_AXES, ModelWeights
from mixer_common.weights.patterns import template

# The canonical layers that have weights, in network order; {i} stands for the number of the block.
_LAYERS: dict[str, Layer] = {
    layer.name.replace("blocks.0.", "blocks.{i}."): layer for layer in layers(ModelConfig(num_blocks=1)) if layer.weight
}
# A number in a file's name: {i} is the block's, from 0, {n} the number of blocks; {i+2} and {n+4} are more by so many.
NUMBER = re.compile(r"\{([in])(?:\+(\d+))?\}")


class Layout(NamedTuple):
    """The way from a canonical weight to the file's, and the way back into the canonical shape."""

    to_file: Callable[[np.ndarray], np.ndarray]
    from_file: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _permuted(axes: tuple[int, ...]) -> Layout:
    return Layout(lambda array: array.transpose(axes), lambda array, shape: array.transpose(np.argsort(axes)))


PYTORCH = Layout(lambda array: array, lambda array, shape: array.reshape(shape))  # the canonical layout
HWIO = _permuted(HWIO_AXES)  # a convolution's filters in Flax
IN_OUT = _permuted(IN_OUT_AXES)  # a linear layer's weight in Flax
CONV1D = Layout(lambda array: array[:, :, None], PYTORCH.from_file)  # a Conv1d of kernel 1 in a linear layer's place
FLAT_PATCHES = Layout(  # the stem as a linear layer over a patch's rows, columns and colours
    lambda array: array.transpose(0, 2, 3, 1).reshape(len(array), -1),
    lambda array, shape: array.reshape(shape[0], *shape[2:], shape[1]).transpose(0, 3, 1, 2),
)


@dataclass(frozen=True)
class Format:
    """One format of weights: names and layouts of the arrays in its files."""

    description: str
    names: Mapping[str, str]  # canonical layer: the file's name of its arrays, with {leaf} for weight or bias
    details: Mapping[str, Any]  # fields of ModelConfig
    suffixes: tuple[str, ...]  # endings of its files, keys of containers.WRITERS; none: it is written as a folder
    layouts: Mapping[str, Layout] = field(default_factory=dict)  # canonical layer: its weight's layout, if not PYTORCH
    weight: str = "weight"  # the {leaf} of a weight
    scale: str = "weight"  # the {leaf} of a norm's weight
    blocks: tuple[str, ...] = ("mixer",)  # the blocks that its model can have, the usual one first
    # Takes a file's name and array; where the format's own reader accepts other shapes, makes one the usual shape.
    accept: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array

    def file_name(self, name: str, num_blocks: int) -> str:
        """The file's name of a canonical array."""
        layer, i, leaf = _parts(name)
        if leaf == "weight":
            leaf = self.scale if _LAYERS[layer].kind == "norm" else self.weight
        numbers = {"i": i, "n": num_blocks}
        template = self.names[layer].replace("{leaf}", leaf)
        return NUMBER.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), template)

    def to_file(self, canonical: Mapping[str, np.ndarray], num_blocks: int) -> dict[str, np.ndarray]:
        """Canonical arrays under the file's names and in its layouts."""
        return {
            self.file_name(name, num_blocks): self._layout(name).to_file(array) for name, array in canonical.items()
        }

    def from_file(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The canonical array `name`, of the canonical `shape`, from the file's."""
        return self._layout(name).from_file(array, shape)

    def file_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays in the file of such a model."""
        empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in weight_shapes(config).items()}
        return {name: array.shape for name, array in self.to_file(empty, config.num_blocks).items()}

    def file_names(self, num_blocks: int) -> set[str]:
        """Names of the arrays in the file of a model of so many blocks."""
        config = ModelConfig(num_blocks=num_blocks)
        return {self.file_name(name, num_blocks) for name in weight_shapes(config)}

    def _layout(self, name: str) -> Layout:
        layer, _, leaf = _parts(name)
        return self.layouts.get(layer, PYTORCH) if leaf == "weight" else PYTORCH


def _parts(name: str) -> tuple[str, int, str]:
    """The layer, as in _LAYERS, the number of the block and the leaf of a canonical name."""
    layer, leaf = name.rsplit(".", 1)
    block = re.search(r"\.(\d+)\.", layer)
    return template(layer), int(block[1]) if block else 0, leaf


def _without_singleton_axes(name: str, array: np.ndarray) -> np.ndarray:
    """The authors' older MLPs have axes of length 1 before those of a linear layer."""
    if not re.search(r"_mixing_phase_0[/.\\]", name):
        return array
    num_axes = 1 if re.search(r"bias\d$", name) else 2
    singletons = [axis for axis, size in enumerate(array.shape) if size == 1]
    return array.squeeze(tuple(singletons[: max(array.ndim - num_axes, 0)]))


def _linear_as_conv1d(name: str, array: np.ndarray) -> np.ndarray:
    """Token mixing in lucidrains' model may be linear layers, too."""
    return array[:, :, None] if array.ndim == 2 and re.search(r"\.0\.fn\.\d\.weight$", name) else array


_FLAX = Format(  # google-research/vision_transformer, vit_jax/models_mixer.py; big_vision/models/mlp_mixer.py
    description="the authors' Flax tree",
    names={
        "stem": "stem/{leaf}",
        "blocks.{i}.token_norm": "MixerBlock_{i}/LayerNorm_0/{leaf}",
        "blocks.{i}.token_mixing.fc1": "MixerBlock_{i}/token_mixing/Dense_0/{leaf}",
        "blocks.{i}.token_mixing.fc2": "MixerBlock_{i}/token_mixing/Dense_1/{leaf}",
        "blocks.{i}.channel_norm": "MixerBlock_{i}/LayerNorm_1/{leaf}",
        "blocks.{i}.channel_mixing.fc1": "MixerBlock_{i}/channel_mixing/Dense_0/{leaf}",
        "blocks.{i}.channel_mixing.fc2": "MixerBlock_{i}/channel_mixing/Dense_1/{leaf}",
        "norm": "pre_head_layer_norm/{leaf}",
        "head": "head/{leaf}",
    },
    details={"gelu": "tanh", "layer_norm_epsilon": 1e-6, "init": "flax"},
    suffixes=(".npz",),
    layouts={"stem": HWIO} | {name: IN_OUT for name, layer in _LAYERS.items() if layer.kind == "linear"},
    weight="kernel",
    scale="scale",
)
# The Flax format as it was first: read as npz, never written. big_vision's `load` renames it in the same way.
OLDER_FLAX = replace(
    _FLAX,
    names={
        "stem": "embedding/{leaf}",
        "blocks.{i}.token_norm": "Mixer/encoderblock_{i}/LayerNorm_0/{leaf}",
        "blocks.{i}.token_mixing.fc1": "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}1",
        "blocks.{i}.token_mixing.fc2": "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}2",
        "blocks.{i}.channel_norm": "Mixer/encoderblock_{i}/LayerNorm_1/{leaf}",
        "blocks.{i}.channel_mixing.fc1": "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}1",
        "blocks.{i}.channel_mixing.fc2": "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}2",
        "norm": "Mixer/encoder_norm/{leaf}",
        "head": "head/{leaf}",
    },
    accept=_without_singleton_axes,
)


def _flax_variants() -> Iterator[Format]:
    remat = {layer: name.replace("MixerBlock", "CheckpointMixerBlock") for layer, name in _FLAX.names.items()}
    for table in (OLDER_FLAX, replace(_FLAX, names=remat), _FLAX):
        for separator in "/.\\":
            if table is not _FLAX or separator != "/":
                names = {layer: name.replace("/", separator) for layer, name in table.names.items()}
                yield replace(table, names=names)


# Flax trees as others store them: read as npz, never written. Windows joins their paths with a backslash, and nn.remat,
# which computes activations twice to save memory, puts a word before the block's name.
FLAX_VARIANTS = tuple(_flax_variants())

_TORCH_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FORMATS: dict[str, Format] = {
    "canonical": Format(
        description="this project's own, config.json and model.safetensors",
        names={name: name + ".{leaf}" for name in _LAYERS},
        details={name: getattr(ModelConfig, name) for name in ("gelu", "layer_norm_epsilon", "init")},
        suffixes=(),
        blocks=("mixer", "tutorial"),
    ),
    "npz": _FLAX,
    "msgpack": replace(_FLAX, suffixes=(".msgpack",)),
    "timm": Format(  # timm/models/mlp_mixer.py, class MlpMixer
        description="timm's MlpMixer",
        names={
            "stem": "stem.proj.{leaf}",
            "blocks.{i}.token_norm": "blocks.{i}.norm1.{leaf}",
            "blocks.{i}.token_mixing.fc1": "blocks.{i}.mlp_tokens.fc1.{leaf}",
            "blocks.{i}.token_mixing.fc2": "blocks.{i}.mlp_tokens.fc2.{leaf}",
            "blocks.{i}.channel_norm": "blocks.{i}.norm2.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "blocks.{i}.mlp_channels.fc1.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "blocks.{i}.mlp_channels.fc2.{leaf}",
            "norm": "norm.{leaf}",
            "head": "head.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-6, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
    ),
    "lucidrains": Format(  # mlp_mixer_pytorch, MLPMixer: a Sequential, of which the blocks are numbers 2 and following
        description="mlp_mixer_pytorch's MLPMixer",
        names={
            "stem": "1.{leaf}",
            "blocks.{i}.token_norm": "{i+2}.0.norm.{leaf}",
            "blocks.{i}.token_mixing.fc1": "{i+2}.0.fn.0.{leaf}",
            "blocks.{i}.token_mixing.fc2": "{i+2}.0.fn.3.{leaf}",
            "blocks.{i}.channel_norm": "{i+2}.1.norm.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "{i+2}.1.fn.0.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "{i+2}.1.fn.3.{leaf}",
            "norm": "{n+2}.{leaf}",
            "head": "{n+4}.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
        layouts={
            "stem": FLAT_PATCHES,
            "blocks.{i}.token_mixing.fc1": CONV1D,
            "blocks.{i}.token_mixing.fc2": CONV1D,
        },
        accept=_linear_as_conv1d,
    ),
    "tutorial": Format(  # "MLP-Mixer in PyTorch"; its class gives both norms the size C, so that it needs S = C
        description="the tutorial's MLPMixer",
        names={
            "stem": "to_patch_embedding.{leaf}",
            "blocks.{i}.token_norm": "mixer_blocks.{i}.layer_norm1.{leaf}",
            "blocks.{i}.token_mixing.fc1": "mixer_blocks.{i}.token_mixing.0.{leaf}",
            "blocks.{i}.token_mixing.fc2": "mixer_blocks.{i}.token_mixing.2.{leaf}",
            "blocks.{i}.channel_norm": "mixer_blocks.{i}.layer_norm2.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "mixer_blocks.{i}.channel_mixing.0.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "mixer_blocks.{i}.channel_mixing.2.{leaf}",
            "norm": "layer_norm.{leaf}",
            "head": "mlp_head.0.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
        blocks=("tutorial",),
    ),
    "omihub": Format(  # omihub777/MLP-Mixer-CIFAR
        description="omihub777's MLP-Mixer-CIFAR",
        names={
            "stem": "patch_emb.0.{leaf}",
            "blocks.{i}.token_norm": "mixer_layers.{i}.mlp1.ln.{leaf}",
            "blocks.{i}.token_mixing.fc1": "mixer_layers.{i}.mlp1.fc1.{leaf}",
            "blocks.{i}.token_mixing.fc2": "mixer_layers.{i}.mlp1.fc2.{leaf}",
            "blocks.{i}.channel_norm": "mixer_layers.{i}.mlp2.ln.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "mixer_layers.{i}.mlp2.fc1.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "mixer_layers.{i}.mlp2.fc2.{leaf}",
            "norm": "ln.{leaf}",
            "head": "clf.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
        layouts={"blocks.{i}.token_mixing.fc1": CONV1D, "blocks.{i}.token_mixing.fc2": CONV1D},
    ),
    "jeonsworld": Format(  # jeonsworld/MLP-Mixer-Pytorch, models/modeling.py
        description="jeonsworld's MLP-Mixer-Pytorch",
        names={
            "stem": "stem.{leaf}",
            "blocks.{i}.token_norm": "layer.{i}.pre_norm.{leaf}",
            "blocks.{i}.token_mixing.fc1": "layer.{i}.token_mlp_block.fc0.{leaf}",
            "blocks.{i}.token_mixing.fc2": "layer.{i}.token_mlp_block.fc1.{leaf}",
            "blocks.{i}.channel_norm": "layer.{i}.post_norm.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "layer.{i}.channel_mlp_block.fc0.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "layer.{i}.channel_mlp_block.fc1.{leaf}",
            "norm": "pre_head_ln.{leaf}",
            "head": "head.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-6, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
    ),
    "mmpretrain": Format(  # mmpretrain/models/backbones/mlp_mixer.py, with the FFN and the PatchEmbed of mmcv
        description="mmpretrain's ImageClassifier of MlpMixer and LinearClsHead",
        names={
            "stem": "backbone.patch_embed.projection.{leaf}",
            "blocks.{i}.token_norm": "backbone.layers.{i}.ln1.{leaf}",
            "blocks.{i}.token_mixing.fc1": "backbone.layers.{i}.token_mix.layers.0.0.{leaf}",
            "blocks.{i}.token_mixing.fc2": "backbone.layers.{i}.token_mix.layers.1.{leaf}",
            "blocks.{i}.channel_norm": "backbone.layers.{i}.ln2.{leaf}",
            "blocks.{i}.channel_mixing.fc1": "backbone.layers.{i}.channel_mix.layers.0.0.{leaf}",
            "blocks.{i}.channel_mixing.fc2": "backbone.layers.{i}.channel_mix.layers.1.{leaf}",
            "norm": "backbone.ln1.{leaf}",
            "head": "head.fc.{leaf}",
        },
        details={"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"},
        suffixes=_TORCH_SUFFIXES,
    ),
}


def to_format(weights: ModelWeights, format: str) -> dict[str, np.ndarray]:
    """The arrays under the names and in the layouts of `format`; views but for lucidrains' stem.

    Raises UserError for an unknown format, and for a block that the format does not have.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}.")
    if weights.config.block not in FORMATS[format].blocks:
        half = {
            "tutorial": "tutorial block, whose first half normalises over the patches",
            "mixer": "mixer block, whose first half mixes the patches",
        }
        raise UserError(f"the {format} format has no {half[weights.config.block]}: write it as canonical.")
    return FORMATS[format].to_file(weights.arrays, weights.config.num_blocks)
