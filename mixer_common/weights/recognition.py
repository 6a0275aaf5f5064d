"""Recognition of a Mixer in named arrays: the format by their names, the sizes by their shapes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mixer_common.config.model import ImageSize, ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, mismatches, with_details
from mixer_common.weights.formats import FORMATS, NUMBER, OLDER_FLAX, WRAPPINGS, Format

_DETAILS = ("gelu", "layer_norm_epsilon", "block", "image_size")

# A model whose sizes all differ: where one of them stands in a shape, a file's shape has the file's size.
_PROBE = ModelConfig(
    image_size=ImageSize(8, 8), patch_size=2, num_classes=13, hidden_dim=5, tokens_mlp_dim=7, channels_mlp_dim=11
)
_PROBE_STEM = 3 * _PROBE.patch_size**2  # the input of a stem that is a linear layer


class _Recognised(NamedTuple):
    """The format of some arrays, and the model's depth."""

    format: str
    table: Format
    prefix: str  # before every name
    num_blocks: int


def recognise_weights(arrays: Mapping[str, np.ndarray], origin: str, **details: Any) -> ModelWeights:
    """The model in a file's arrays, in whichever of FORMATS it is; `origin` names the file in errors.

    Both Flax formats have the same names; they are read as "npz". Dtypes stay, and the arrays are views.
    details: gelu, layer_norm_epsilon, block and image_size state what the arrays do not tell; image_size, height and
    width, which image the patches stand for, where it is not the most nearly square one.

    Raises UserError where the arrays are no Mixer, with one list of all that is missing, extra, misshapen
    or not floating-point, and where the details do not fit.
    """
    if unknown := details.keys() - set(_DETAILS):
        raise TypeError(f"no details of weights: {sorted(unknown)}")
    format, table, prefix, num_blocks = _recognise_format(arrays, origin)
    found = {name: table.accept(name, np.asarray(array)) for name, array in arrays.items() if name.startswith(prefix)}
    if details.get("block") == "tutorial" and "tutorial" not in table.blocks:
        raise UserError(
            f"{origin} is in the {format} format, which has the mixer block only: leave out the tutorial's."
        )
    blocks = [details["block"]] if "block" in details else table.blocks
    candidates = []
    for block in blocks:
        config = _infer_config(table, prefix, found, num_blocks, block)
        candidates.append((mismatches(found, _file_shapes(table, prefix, config)), config))
    wrong, config = min(candidates, key=lambda candidate: len(candidate[0]))
    wrong += [
        f"{name} holds {array.dtype} instead of floating-point numbers"
        for name, array in found.items()
        if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64)
    ]
    if wrong:
        raise UserError(
            f"{origin} does not fit a Mixer of {num_blocks} blocks in the {format} format: {'; '.join(wrong)}."
        )
    canonical = {}
    for name, shape in weight_shapes(config).items():
        array = found[prefix + table.file_name(name, num_blocks)]
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        canonical[name] = table.from_file(name, array, shape)
    assumed = ["gelu", "layer_norm_epsilon", "image_size"]
    if len(candidates) == 2 and not any(wrong for wrong, _ in candidates):  # as many patches as channels
        assumed.append("block")
    weights = ModelWeights(config, canonical, format, tuple(name for name in assumed if name not in details))
    return with_details(weights, origin, **details)


def _recognise_format(names: Iterable[str], origin: str) -> _Recognised:
    """The format, prefix and depth whose names most of the given names are. Raises UserError where none are."""
    best, most = None, 0
    for prefix in WRAPPINGS:
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for format, table in (*FORMATS.items(), ("npz", OLDER_FLAX)):
            if num_blocks := _count_blocks(table, inner):
                expected = table.file_shapes(replace(_PROBE, num_blocks=num_blocks)).keys()
                if len(inner & expected) > most:
                    best, most = _Recognised(format, table, prefix, num_blocks), len(inner & expected)
    if best is None:
        some = ", ".join(list(names)[:4]) or "none"
        raise UserError(
            f"{origin} holds no MLP-Mixer in any format known ({', '.join(FORMATS)}): no token mixing among "
            f"its arrays, which begin with {some}; name the weights of a Mixer."
        )
    return best


def _count_blocks(table: Format, names: set[str]) -> int:
    """The highest number of a block + 1, so that a lost block is missed; 0 where nothing mixes tokens."""
    numbers = {
        layer: _numbers(template, names) for layer, template in table.names.items() if layer.startswith("blocks.")
    }
    if not any(blocks for layer, blocks in numbers.items() if "token_mixing" in layer):
        return 0
    counts = [block + 1 for blocks in numbers.values() for block in blocks]
    # The head's number, if it has one, tells how many blocks there were, even if the last is lost.
    counts += _numbers(table.names["head"], names)
    # More blocks than arrays is no lost block but a stray name.
    return max((count for count in counts if count <= len(names)), default=0)


def _numbers(template: str, names: set[str]) -> list[int]:
    """The number of the block, or of blocks, in each name that the template of a format can make."""
    number = NUMBER.search(template)
    if number is None:
        return []
    before, after = (
        re.escape(part).replace(r"\{leaf\}", r"\w+?") for part in (template[: number.start()], template[number.end() :])
    )
    pattern = re.compile(rf"{before}(\d{{1,9}}){after}")
    return [int(match[1]) - int(number[2] or 0) for name in names if (match := pattern.fullmatch(name))]


def _file_shapes(table: Format, prefix: str, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in table.file_shapes(config).items()}


def _infer_config(
    table: Format, prefix: str, found: Mapping[str, np.ndarray], num_blocks: int, block: str
) -> ModelConfig:
    """The config whose sizes most of the shapes agree on."""
    votes: dict[int, Counter[int]] = defaultdict(Counter)
    probe = replace(_PROBE, num_blocks=num_blocks, block=block)
    for name, shape in _file_shapes(table, prefix, probe).items():
        if name in found and found[name].ndim == len(shape):
            for axis, size in zip(shape, found[name].shape, strict=True):
                votes[axis][max(size, 1)] += 1
    if stem := votes.pop(_PROBE_STEM, None):
        votes[_PROBE.patch_size][max(math.isqrt(max(stem) // 3), 1)] += 1

    def most_voted(field: str) -> int:  # 1 where every array that tells is missing
        return max(votes[getattr(_PROBE, field)].items(), key=lambda vote: vote[1], default=(1, 0))[0]

    num_patches, patch_size = most_voted("num_patches"), most_voted("patch_size")
    rows = next(rows for rows in range(math.isqrt(num_patches), 0, -1) if num_patches % rows == 0)
    columns = num_patches // rows
    return ModelConfig(
        image_size=ImageSize(rows * patch_size, columns * patch_size),
        num_blocks=num_blocks,
        patch_size=patch_size,
        **{name: most_voted(name) for name in ("num_classes", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")},
        **{"block": block, **table.details},
    )
