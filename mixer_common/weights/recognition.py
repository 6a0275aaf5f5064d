"""TODO docstring."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mixer_common.config.model import ImageSize, ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, misfits, with_details
from mixer_common.weights.formats import (
    DETAILS,
    FORMATS,
    NAMES,
    WRAPPINGS,
    accepted_layout,
    file_name,
    file_shapes,
    from_layout,
)

_OVERRIDES = ("gelu", "layer_norm_epsilon", "block", "image_size")

# A model whose sizes all differ: where one of them stands in a shape, a file's shape has the file's size.
_PROBE = ModelConfig(image_size=8, patch_size=2, num_classes=13, hidden_dim=5, tokens_mlp_dim=7, channels_mlp_dim=11)
_PROBE_STEM = 3 * _PROBE.patch_size**2  # lucidrains' stem is a linear layer


def recognise_weights(arrays: Mapping[str, np.ndarray], where: str, **overrides: Any) -> ModelWeights:
    """The model in a file's arrays, its format recognised from their names, its sizes from their shapes.

    Both Flax formats have the same names; they are read as "npz". Dtypes stay, and the arrays are views.
    overrides: gelu, layer_norm_epsilon, block; image_size, height and width, states which image the patches
    stand for, where it is not the most nearly square one. `where` names the file in errors.

    Raises UserError where the arrays are no Mixer, with one list of all that is missing, extra, misshapen
    or not floating-point, and where the overrides do not fit.
    """
    if unknown := overrides.keys() - set(_OVERRIDES):
        raise TypeError(f"cannot be overridden: {sorted(unknown)}")
    naming, prefix, num_blocks = _recognise(arrays, where)
    format = "npz" if naming == "older npz" else naming
    found = {
        name: accepted_layout(naming, name, np.asarray(array))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    blocks = [overrides.get("block", "mixer")]
    if format == "canonical" and "block" not in overrides:
        blocks.append("tutorial")
    elif format != "canonical" and blocks == ["tutorial"]:
        raise UserError(f"{where} is in the {format} format, which has the mixer block only: leave out the tutorial's.")
    candidates = []
    for block in blocks:
        config = _infer(naming, prefix, found, num_blocks, block, DETAILS[format])
        candidates.append((misfits(found, file_shapes(naming, prefix, config)), config))
    wrong, config = min(candidates, key=lambda candidate: len(candidate[0]))
    wrong += [
        f"{name} holds {array.dtype} instead of floating-point numbers"
        for name, array in found.items()
        if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64)
    ]
    if wrong:
        raise UserError(
            f"{where} does not fit a Mixer of {num_blocks} blocks in the {format} format: {'; '.join(wrong)}."
        )
    stated = dict(overrides)
    canonical = {}
    for name, shape in weight_shapes(config).items():
        array = found[file_name(naming, prefix, name, num_blocks)]
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        canonical[name] = from_layout(naming, name, array, shape)
    assumed = ["gelu", "layer_norm_epsilon", "image_size"]
    if len(candidates) == 2 and not any(misfits for misfits, _ in candidates):  # as many patches as channels
        assumed.append("block")
    weights = ModelWeights(config, canonical, format, tuple(name for name in assumed if name not in stated))
    return with_details(weights, where, **stated)


def _recognise(names: Iterable[str], where: str) -> tuple[str, str, int]:
    """How the file names its layers, what it has before the names, and the number of blocks."""
    best, most = None, 0
    for prefix in WRAPPINGS:
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for naming in NAMES:
            if num_blocks := _count_blocks(naming, inner):
                expected = {
                    file_name(naming, "", name, num_blocks)
                    for name in weight_shapes(replace(_PROBE, num_blocks=num_blocks))
                }
                if len(inner & expected) > most:
                    best, most = (naming, prefix, num_blocks), len(inner & expected)
    if best is None:
        some = ", ".join(list(names)[:4]) or "none"
        raise UserError(
            f"{where} holds no MLP-Mixer in any format known ({', '.join(FORMATS)}): no token mixing among "
            f"its arrays, which begin with {some}; name the weights of a Mixer."
        )
    return best


def _count_blocks(naming: str, names: set[str]) -> int:
    """The highest index + 1, so that a lost block is missed; 0 where nothing mixes tokens."""

    def numbers(templates: Iterable[str]) -> list[int]:
        pattern = "|".join(
            re.sub(r"\\{[in]\d?\\}", r"(\\d{1,9})", re.escape(template)).replace(r"\{leaf\}", r"\w+?")
            for template in templates
        )
        return [int(next(filter(None, match.groups()))) for name in names if (match := re.fullmatch(pattern, name))]

    templates = NAMES[naming]
    if not numbers(templates[2:4]):
        return 0
    counts = [number + (-1 if naming == "lucidrains" else 1) for number in numbers(templates[1:7])]
    if naming == "lucidrains":  # the head's number tells how many blocks there were, even if the last is lost
        counts += [number - 4 for number in numbers(templates[8:])]
    # More blocks than arrays is no lost block but a stray name.
    return max((count for count in counts if count <= len(names)), default=0)


def _infer(
    naming: str, prefix: str, found: Mapping[str, np.ndarray], num_blocks: int, block: str, details: Mapping[str, Any]
) -> ModelConfig:
    """The config whose sizes most of the shapes agree on."""
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    probe = replace(_PROBE, num_blocks=num_blocks, block=block)
    for name, shape in file_shapes(naming, prefix, probe).items():
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
    return ModelConfig(
        image_size=ImageSize(rows * patch_size, columns * patch_size),
        num_blocks=num_blocks,
        block=block,
        patch_size=patch_size,
        **{name: size(name) for name in ("num_classes", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")},
        **details,
    )
