"""Names and layouts of weights: the canonical form, Flax's, and those of other Mixers' files.

The canonical form is a flat dict of NumPy arrays with the PyTorch model's names and layouts; weights,
gradients and optimizer moments all have it. Transposing moves values, it never changes a bit.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixer_common.config import MixerConfig, weight_shapes
from mixer_common.errors import UserError

FORMATS = ("canonical", "npz", "msgpack", "timm", "lucidrains")

# canonical layout -> Flax: last part of the name, and the axes in Flax's order.
_STEM = ("kernel", (2, 3, 1, 0))  # O,I,H,W -> H,W,I,O
_LINEAR = ("kernel", (1, 0))  # out,in -> in,out
_NORM = ("scale", (0,))
_BIAS = ("bias", (0,))

_LAYERS = ("stem", "blocks.{i}.token_norm", "blocks.{i}.token_mixing.fc1", "blocks.{i}.token_mixing.fc2",
           "blocks.{i}.channel_norm", "blocks.{i}.channel_mixing.fc1", "blocks.{i}.channel_mixing.fc2", "norm", "head")
# What the files call these layers: {leaf} is weight or bias, in Flax kernel, scale or bias; {i} is the block.
# lucidrains numbers a Sequential that begins with two layers: {i2} is block i, {n2} and {n4} follow n blocks.
_NAMES: dict[str, tuple[str, ...]] = {
    "canonical": tuple(layer + ".{leaf}" for layer in _LAYERS),
    "npz": (  # google-research/vision_transformer, vit_jax/models_mixer.py; big_vision/models/mlp_mixer.py
        "stem/{leaf}", "MixerBlock_{i}/LayerNorm_0/{leaf}", "MixerBlock_{i}/token_mixing/Dense_0/{leaf}",
        "MixerBlock_{i}/token_mixing/Dense_1/{leaf}", "MixerBlock_{i}/LayerNorm_1/{leaf}",
        "MixerBlock_{i}/channel_mixing/Dense_0/{leaf}", "MixerBlock_{i}/channel_mixing/Dense_1/{leaf}",
        "pre_head_layer_norm/{leaf}", "head/{leaf}"),
    "older npz": (  # what big_vision's `load` renames
        "embedding/{leaf}", "Mixer/encoderblock_{i}/LayerNorm_0/{leaf}",
        "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}1", "Mixer/encoderblock_{i}/token_mixing_phase_0/{leaf}2",
        "Mixer/encoderblock_{i}/LayerNorm_1/{leaf}", "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}1",
        "Mixer/encoderblock_{i}/channel_mixing_phase_0/{leaf}2", "Mixer/encoder_norm/{leaf}", "head/{leaf}"),
    "timm": (  # timm/models/mlp_mixer.py, class MlpMixer
        "stem.proj.{leaf}", "blocks.{i}.norm1.{leaf}", "blocks.{i}.mlp_tokens.fc1.{leaf}",
        "blocks.{i}.mlp_tokens.fc2.{leaf}", "blocks.{i}.norm2.{leaf}", "blocks.{i}.mlp_channels.fc1.{leaf}",
        "blocks.{i}.mlp_channels.fc2.{leaf}", "norm.{leaf}", "head.{leaf}"),
    "lucidrains": (  # mlp_mixer_pytorch, MLPMixer
        "1.{leaf}", "{i2}.0.norm.{leaf}", "{i2}.0.fn.0.{leaf}", "{i2}.0.fn.3.{leaf}", "{i2}.1.norm.{leaf}",
        "{i2}.1.fn.0.{leaf}", "{i2}.1.fn.3.{leaf}", "{n2}.{leaf}", "{n4}.{leaf}")}
# What a file may have around the weights' tree; beside it lies what training kept, such as the optimizer's state.
_WRAPPINGS = ("", "params/", "params/params/", "target/", "target/params/", "opt/target/", "optimizer/target/")

# What each format's own model computes with, since its files do not say.
DETAILS: dict[str, dict[str, Any]] = {
    "canonical": {name: getattr(MixerConfig, name) for name in ("gelu", "layer_norm_epsilon", "init")},
    "npz": {"gelu": "tanh", "layer_norm_epsilon": 1e-6, "init": "flax"},
    "msgpack": {"gelu": "tanh", "layer_norm_epsilon": 1e-6, "init": "flax"},
    "timm": {"gelu": "exact", "layer_norm_epsilon": 1e-6, "init": "pytorch"},
    "lucidrains": {"gelu": "exact", "layer_norm_epsilon": 1e-5, "init": "pytorch"}}
_OVERRIDES = ("gelu", "layer_norm_epsilon", "block", "image_size", "image_width")

# A model whose sizes all differ: where one of them stands in a shape, a file's shape has the file's size.
_PROBE = MixerConfig(image_size=8, patch_size=2, num_classes=13, hidden_dim=5, tokens_mlp_dim=7, channels_mlp_dim=11)
_PROBE_STEM = 3 * _PROBE.patch_size**2  # lucidrains' stem is a linear layer


@dataclass(frozen=True)
class ModelWeights:
    """A model's weights, and what is known of the model."""

    config: MixerConfig
    arrays: dict[str, np.ndarray]  # canonical, in the order of weight_shapes(config); may be views
    format: str  # one of FORMATS: where they come from
    assumed: tuple[str, ...] = ()  # fields of the config that the file does not tell and nobody stated


def describe_assumed(weights: ModelWeights) -> str:
    """What was taken for granted of the model, for people; empty where the file tells everything."""
    config = weights.config
    height, width = config.image_shape
    words = {"gelu": f"gelu {config.gelu}", "layer_norm_epsilon": f"layer_norm_epsilon {config.layer_norm_epsilon:g}",
             "image_size": f"images {height}x{width}", "block": f"block {config.block}"}
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
    if wrong := _misfits(arrays, shapes):
        raise UserError(f"{what} does not fit the model: {'; '.join(wrong)}.")


def _misfits(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    wrong = [f"{name} is missing" for name in shapes if name not in arrays]
    wrong += [f"{name} is not expected" for name in arrays if name not in shapes]
    return wrong + [f"{name} has shape {arrays[name].shape} instead of {tuple(shape)}"
                    for name, shape in shapes.items() if name in arrays and arrays[name].shape != tuple(shape)]


def from_foreign(arrays: Mapping[str, np.ndarray], where: str, **overrides: Any) -> ModelWeights:
    """The model in a file's arrays, its format recognised from their names, its sizes from their shapes.

    Both Flax formats have the same names; they are read as "npz". Dtypes stay, and the arrays are views.
    overrides: gelu, layer_norm_epsilon, block; image_size and image_width state which shape the patches
    stand for, where it is not the most nearly square one. `where` names the file in errors.

    Raises UserError where the arrays are no Mixer, with one list of all that is missing, extra, misshapen
    or not floating-point, and where the overrides do not fit.
    """
    if unknown := overrides.keys() - set(_OVERRIDES):
        raise TypeError(f"cannot be overridden: {sorted(unknown)}")
    naming, prefix, num_blocks = _recognise(arrays, where)
    format = "npz" if naming == "older npz" else naming
    found = {name: _relaxed(naming, name, np.asarray(array)) for name, array in arrays.items()
             if name.startswith(prefix)}
    blocks = [overrides.get("block", "mixer")]
    if format == "canonical" and "block" not in overrides:
        blocks.append("tutorial")
    elif format != "canonical" and blocks == ["tutorial"]:
        raise UserError(f"{where} is in the {format} format, which has the mixer block only: leave out the tutorial's.")
    candidates = []
    for block in blocks:
        config = _infer(naming, prefix, found, num_blocks, block, DETAILS[format])
        candidates.append((_misfits(found, _file_shapes(naming, prefix, config)), config))
    wrong, config = min(candidates, key=lambda candidate: len(candidate[0]))
    wrong += [f"{name} holds {array.dtype} instead of floating-point numbers" for name, array in found.items()
              if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64)]
    if wrong:
        raise UserError(f"{where} does not fit a Mixer of {num_blocks} blocks in the {format} format: "
                        f"{'; '.join(wrong)}.")
    stated = dict(overrides)
    if "image_size" in stated:  # which then means a square, unless the width is stated too
        stated.setdefault("image_width", 0)
    canonical = {}
    for name, shape in weight_shapes(config).items():
        array = found[_file_name(naming, prefix, name, num_blocks)]
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        canonical[name] = _laid_back(naming, name, array, shape)
    assumed = ["gelu", "layer_norm_epsilon", "image_size", "image_width"]
    if len(candidates) == 2 and not any(misfits for misfits, _ in candidates):  # as many patches as channels
        assumed.append("block")
    weights = ModelWeights(config, canonical, format, tuple(name for name in assumed if name not in stated))
    return state(weights, where, **stated)


def state(weights: ModelWeights, where: str, **overrides: Any) -> ModelWeights:
    """The same weights with other details, and another shape for as many patches. UserError if it is not."""
    config = replace(weights.config, **overrides)
    if config.num_patches != weights.config.num_patches:
        height, width = config.image_shape
        raise UserError(f"{where} mixes {weights.config.num_patches} patches of {config.patch_size} pixels, but an "
                        f"image of {height}x{width} has {config.num_patches}: state a height and a width that give "
                        "as many.")
    return replace(weights, config=config)


def to_foreign(weights: ModelWeights, format: str) -> dict[str, np.ndarray]:
    """The arrays under the names and in the layouts of `format`; views but for lucidrains' stem.

    Raises UserError for an unknown format, and for the tutorial's block in any but the canonical form.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}.")
    if format != "canonical" and weights.config.block == "tutorial":
        raise UserError(f"the {format} format has no tutorial block, whose first half normalises over the patches: "
                        "write it as canonical.")
    return _renamed("npz" if format == "msgpack" else format, "", weights.arrays, weights.config.num_blocks)


def replace_head(weights: ModelWeights, num_classes: int) -> ModelWeights:
    """A head for other classes, all zero as the authors start a fine-tuning (arXiv 2105.01601, appendix)."""
    config = replace(weights.config, num_classes=num_classes)
    dtype = weights.arrays["head.weight"].dtype
    shapes = weight_shapes(config)
    return replace(weights, config=config, arrays=weights.arrays | {
        name: np.zeros(shapes[name], dtype) for name in ("head.weight", "head.bias")})


def _recognise(names: Iterable[str], where: str) -> tuple[str, str, int]:
    """How the file names its layers, what it has before the names, and the number of blocks."""
    best, most = None, 0
    for prefix in _WRAPPINGS:
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for naming in _NAMES:
            if num_blocks := _count_blocks(naming, inner):
                expected = {_file_name(naming, "", name, num_blocks)
                            for name in weight_shapes(replace(_PROBE, num_blocks=num_blocks))}
                if len(inner & expected) > most:
                    best, most = (naming, prefix, num_blocks), len(inner & expected)
    if best is None:
        some = ", ".join(list(names)[:4]) or "none"
        raise UserError(f"{where} holds no MLP-Mixer in any format known ({', '.join(FORMATS)}): no token mixing among "
                        f"its arrays, which begin with {some}; name the weights of a Mixer.")
    return best


def _count_blocks(naming: str, names: set[str]) -> int:
    """The highest index + 1, so that a lost block is missed; 0 where nothing mixes tokens."""
    def numbers(templates: Iterable[str]) -> list[int]:
        pattern = "|".join(re.sub(r"\\{[in]\d?\\}", r"(\\d{1,9})", re.escape(template)).replace(r"\{leaf\}", r"\w+?")
                           for template in templates)
        return [int(next(filter(None, match.groups()))) for name in names if (match := re.fullmatch(pattern, name))]

    templates = _NAMES[naming]
    if not numbers(templates[2:4]):
        return 0
    counts = [number + (-1 if naming == "lucidrains" else 1) for number in numbers(templates[1:7])]
    if naming == "lucidrains":  # the head's number tells how many blocks there were, even if the last is lost
        counts += [number - 4 for number in numbers(templates[8:])]
    # More blocks than arrays is no lost block but a stray name.
    return max((count for count in counts if count <= len(names)), default=0)


def _infer(naming: str, prefix: str, found: Mapping[str, np.ndarray], num_blocks: int, block: str,
           details: Mapping[str, Any]) -> MixerConfig:
    """The config whose sizes most of the shapes agree on."""
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    probe = replace(_PROBE, num_blocks=num_blocks, block=block)
    for name, shape in _file_shapes(naming, prefix, probe).items():
        if name in found and found[name].ndim == len(shape):
            for axis, size in zip(shape, found[name].shape, strict=True):
                votes[axis][max(size, 1)] += 1
    if stem := votes.pop(_PROBE_STEM, None):
        votes[_PROBE.patch_size][max(math.isqrt(max(stem) // 3), 1)] += 1

    def size(field: str) -> int:  # 1 where every array that tells is missing
        return max(votes[getattr(_PROBE, field)].items(), key=lambda vote: vote[1], default=(1, 0))[0]

    num_patches, patch_size = size("num_patches"), size("patch_size")
    rows = next(rows for rows in range(math.isqrt(num_patches), 0, -1) if num_patches % rows == 0)
    columns = num_patches // rows
    return MixerConfig(
        image_size=rows * patch_size, image_width=0 if rows == columns else columns * patch_size, num_blocks=num_blocks,
        block=block, patch_size=patch_size, **{name: size(name) for name in (
            "num_classes", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")}, **details)


def _file_name(naming: str, prefix: str, name: str, num_blocks: int) -> str:
    """What the file calls a canonical name."""
    layer, leaf = name.rsplit(".", 1)
    index = re.search(r"\.(\d+)\.", layer)
    i = int(index[1]) if index else 0
    at = _LAYERS.index(re.sub(r"\.\d+\.", ".{i}.", layer))
    if naming.endswith("npz") and leaf == "weight":
        leaf = "scale" if "norm" in layer else "kernel"
    return prefix + _NAMES[naming][at].format(leaf=leaf, i=i, i2=i + 2, n2=num_blocks + 2, n4=num_blocks + 4)


def _file_shapes(naming: str, prefix: str, config: MixerConfig) -> dict[str, tuple[int, ...]]:
    """What the file calls the arrays of such a model, and their shapes there."""
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in weight_shapes(config).items()}
    return {name: array.shape for name, array in _renamed(naming, prefix, empty, config.num_blocks).items()}


def _renamed(naming: str, prefix: str, canonical: Mapping[str, np.ndarray], num_blocks: int) -> dict[str, np.ndarray]:
    return {_file_name(naming, prefix, name, num_blocks): _laid_out(naming, name, array)
            for name, array in canonical.items()}


def _laid_out(naming: str, name: str, array: np.ndarray) -> np.ndarray:
    if naming.endswith("npz"):
        return array.transpose(flax_rule(name, array.ndim)[1])
    if naming == "lucidrains" and array.ndim == 4:
        return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    if naming == "lucidrains" and array.ndim == 2 and "token_mixing" in name:
        return array[:, :, None]
    return array


def _laid_back(naming: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The way back, into the canonical `shape`."""
    if naming.endswith("npz"):
        return array.transpose(np.argsort(flax_rule(name, len(shape))[1]))
    if naming == "lucidrains" and len(shape) == 4:
        return array.reshape(shape[0], *shape[2:], shape[1]).transpose(0, 3, 1, 2)
    return array.reshape(shape)


def _relaxed(naming: str, name: str, array: np.ndarray) -> np.ndarray:
    """What the format's own reader accepts besides: singleton axes, a Linear in place of a Conv1d."""
    if naming == "older npz" and re.search(r"_mixing_phase_0/", name):
        axes = 1 if re.search(r"bias\d$", name) else 2
        extra = [axis for axis, size in enumerate(array.shape) if size == 1][: max(array.ndim - axes, 0)]
        return array.squeeze(tuple(extra))
    if naming == "lucidrains" and array.ndim == 2 and re.search(r"\.0\.fn\.\d\.weight$", name):
        return array[:, :, None]
    return array


