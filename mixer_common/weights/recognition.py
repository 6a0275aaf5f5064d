"""Recognition of a Mixer in named arrays: the format by their names, the sizes by their shapes."""

import contextlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixer_common.config.model import ImageSize, ModelConfig, squarest_image, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, mismatches, with_details
from mixer_common.weights.formats import FORMATS, Format
from mixer_common.weights.patterns import Source, canonical_arrays, describe_names
from mixer_common.weights.pixels import OWN_SCALE, PixelScale, describe_scale, fold_scale, is_scale, scale_in_arrays
from mixer_common.weights.reading import flatten, plain_array
from mixer_common.weights.stacking import unstack
from mixer_common.weights.structure import NoStructure, Structure, recognise_structure
from mixer_common.weights.wrapping import WrappedWeights, choose_weights, find_weights, is_counter, is_moment

DETAILS = ("gelu", "layer_norm_epsilon", "block", "image_size")

# A model whose sizes all differ: where one of them stands in a shape, a file's shape has the file's size.
_PROBE = ModelConfig(
    image_size=ImageSize(8, 8), patch_size=2, num_classes=13, hidden_dim=5, tokens_mlp_dim=7, channels_mlp_dim=11
)
_PROBE_STEM = 3 * _PROBE.patch_size**2  # the input of a stem that is a linear layer


def recognise_weights(
    arrays: Mapping[str, Any],
    origin: str,
    prefer: str | None = None,
    pixels: PixelScale | None = None,
    without_head: bool = False,
    names: Mapping[str, Source] | None = None,
    **details: Any,
) -> ModelWeights:
    """The model in a file's arrays, in whichever of FORMATS it is; `origin` names the file in errors.

    arrays: flat, or a nested dict, whose names are joined by slashes; of NumPy, JAX or PyTorch. Before the names may
    stand any prefix. Both Flax formats have the same names; they are read as "npz". Dtypes stay, but bfloat16, which
    NumPy lacks, becomes float32; the arrays are views where nothing is computed.
    prefer: which of several sets of weights is read; see wrapping.choose_weights.
    pixels: the scale of the pixels that they were made for; None: the arrays' own, or this project's.
    names: names and layouts that the user states; see patterns.read_names. Where no table knows the names, the
    structure decides; see structure.recognise_structure.
    without_head: where the head is missing, make one of zeros for one class, for others to replace.
    details: gelu, layer_norm_epsilon, block and image_size state what the arrays do not tell; image_size, height and
    width, which image the patches stand for, where it is not the most nearly square one.

    Raises UserError where the arrays are no Mixer, with one list of all that is missing, extra, misshapen
    or not floating-point, and where the details do not fit.
    """
    if unknown := details.keys() - set(DETAILS):
        raise TypeError(f"no details of weights: {sorted(unknown)}")
    arrays, notes = unstack(flatten(arrays))
    sets = find_weights(list(arrays))
    if names or not sets:
        weights = _by_structure(arrays, origin, prefer, pixels, names or {}, without_head, details)
        return replace(weights, notes=(*notes, *weights.notes))
    wrapped, choice = choose_weights(sets, prefer, origin)
    format, table, prefix, num_blocks, _ = wrapped
    if details.get("block", table.blocks[0]) not in table.blocks:
        own, other = ("mixer", "tutorial's") if table.blocks == ("mixer",) else ("tutorial's", "mixer")
        raise UserError(f"{origin} is in the {format} format, which has the {own} block only: leave out the {other}.")
    found = _arrays_of(arrays, wrapped, sets)
    notes += [choice] if choice else []
    pixels, buffer_names = _pixel_scale(arrays, pixels, notes, origin)
    found = {name: array for name, array in found.items() if name not in buffer_names}
    head = [prefix + table.file_name(name, num_blocks) for name in ("head.weight", "head.bias")]
    has_head = any(name in found for name in head)
    if not has_head:
        found |= _zero_head(table, found, prefix, num_blocks)
    config, wrong, block_is_told = _find_config(table, prefix, found, num_blocks, details.get("block"))
    if not has_head and not (without_head and not wrong):
        if not wrong:
            raise _no_head(origin, f" ({' and '.join(head)})")
        wrong = [f"{name} is missing" for name in head] + wrong
    if wrong:
        raise UserError(
            f"{origin} does not fit a Mixer of {num_blocks} blocks in the {format} format: {'; '.join(wrong)}."
        )
    canonical = {}
    for name, shape in weight_shapes(config).items():
        array = found[prefix + table.file_name(name, num_blocks)]
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        canonical[name] = table.from_file(name, array, shape)
    assumed = _assumed(details, block_is_told, pixels)
    weights = ModelWeights(config, canonical, format, assumed, tuple(notes), has_head=has_head)
    return with_details(fold_scale(weights, pixels or OWN_SCALE), origin, **details)


def _by_structure(
    arrays: Mapping[str, Any],
    origin: str,
    prefer: str | None,
    pixels: PixelScale | None,
    names: Mapping[str, Source],
    without_head: bool,
    details: dict[str, Any],
) -> ModelWeights:
    """The model in arrays whose names no table knows."""
    notes = []
    pixels, buffer_names = _pixel_scale(arrays, pixels, notes, origin)
    arrays = {
        name: array
        for name, array in arrays.items()
        if name not in buffer_names and not is_counter(name) and not is_moment(name)
    }
    sets = _sets_by_structure({name: tuple(np.shape(a)) for name, a in arrays.items()}, origin, details, names)
    if not sets:
        if names:
            raise UserError(f"{origin} holds no Mixer whose names are as stated: check them and their layouts.")
        raise _no_mixer(arrays, origin)
    wrapped = [WrappedWeights("structure", FORMATS["canonical"], prefix, 0, 0) for prefix in sets]
    chosen, choice = choose_weights(wrapped, prefer, origin)
    structure = sets[chosen.prefix]
    has_head = "head.weight" in structure.names
    if not has_head and not without_head:
        raise _no_head(origin)
    notes += [choice] if choice else []
    plain = {source.name: plain_array(arrays[source.name]) for source in structure.names.values()}
    if wrong := [f"{name} holds {array.dtype}" for name, array in plain.items() if array.dtype.kind != "f"]:
        raise UserError(f"{origin}: {'; '.join(wrong)} instead of floating-point numbers.")
    plain = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in plain.items()}
    config = structure.config
    notes += [f"by its structure: {line}" for line in describe_names(structure.names, config)]
    assumed = _assumed(details, structure.block_is_told, pixels)
    canonical = canonical_arrays(plain, structure.names, config)
    weights = ModelWeights(config, canonical, "structure", assumed, tuple(notes), structure.names, has_head)
    return with_details(fold_scale(weights, pixels or OWN_SCALE), origin, **details)


def _pixel_scale(
    arrays: Mapping[str, Any], stated: PixelScale | None, notes: list[str], origin: str
) -> tuple[PixelScale | None, list[str]]:
    """The scale of the pixels that is stated, or else that of the arrays' own buffers, and the names of these buffers.

    Where the buffers decide, a note for people is added to `notes`.
    """
    buffers = scale_in_arrays({name: plain_array(arrays[name]) for name in arrays if is_scale(name)}, origin)
    if buffers is None:
        return stated, []
    scale, names = buffers
    if stated is None:
        notes.append(f"{describe_scale(scale)}, of the file's own {' and '.join(names)}")
    return stated or scale, names


def _assumed(details: Mapping[str, Any], block_is_told: bool, pixels: PixelScale | None) -> tuple[str, ...]:
    """What neither the arrays nor the user tells; see ModelWeights.assumed."""
    is_told = {"block": block_is_told, "pixels": pixels is not None}
    names = ("gelu", "layer_norm_epsilon", "image_size", "block", "pixels")
    return tuple(name for name in names if not is_told.get(name, name in details))


def _sets_by_structure(
    shapes: Mapping[str, tuple[int, ...]], origin: str, details: Mapping[str, Any], names: Mapping[str, Source]
) -> dict[str, Structure]:
    """The models in arrays of these shapes: of all of them, or else of those under each first part of the names; by
    that part with its separator. Raises UserError as recognise_structure does."""
    heads = [match[0] for name in shapes if (match := re.match(r"[^./\\]*[./\\]", name))]
    for prefixes in ([""], list(dict.fromkeys(heads))):
        sets = {}
        for prefix in prefixes:
            inner = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
            with contextlib.suppress(NoStructure):
                sets[prefix] = recognise_structure(inner, origin, details.get("block"), names)
        if sets:
            return sets
    return {}


def _no_head(origin: str, names: str = "") -> UserError:
    return UserError(
        f"{origin} holds the weights of a Mixer without its head{names}: state the number of classes, --num-classes, "
        "to give it a head of zeros."
    )


def _no_mixer(names: Iterable[str], origin: str) -> UserError:
    some = ", ".join(list(names)[:4]) or "none"
    return UserError(
        f"{origin} holds no MLP-Mixer in any format known ({', '.join(FORMATS)}): no token mixing among "
        f"its arrays, which begin with {some}; name the weights of a Mixer."
    )


def _arrays_of(
    arrays: Mapping[str, Any], wrapped: WrappedWeights, sets: Sequence[WrappedWeights]
) -> dict[str, np.ndarray]:
    """The arrays of one of several sets, as NumPy's, in the shapes that are usual in its format."""
    others = tuple(each.prefix for each in sets if each is not wrapped and each.prefix.startswith(wrapped.prefix))
    return {
        name: wrapped.table.accept(name, plain_array(array))
        for name, array in arrays.items()
        if name.startswith(wrapped.prefix) and not name.startswith(others) and not is_counter(name)
    }


def _zero_head(table: Format, found: Mapping[str, np.ndarray], prefix: str, num_blocks: int) -> dict[str, np.ndarray]:
    """A head of zeros for one class, in the layout and the dtype of the other arrays."""
    config = replace(_infer_config(table, prefix, found, num_blocks, table.blocks[0]), num_classes=1)
    dtype = next(iter(found.values())).dtype
    shapes = _file_shapes(table, prefix, config)
    names = [prefix + table.file_name(name, num_blocks) for name in ("head.weight", "head.bias")]
    return {name: np.zeros(shapes[name], dtype) for name in names}


def _find_config(
    table: Format, prefix: str, found: Mapping[str, np.ndarray], num_blocks: int, block: str | None
) -> tuple[ModelConfig, list[str], bool]:
    """The config that fits best, what does not fit it, and whether the arrays or `block` tell the block."""
    candidates = []
    for each in [block] if block else table.blocks:
        config = _infer_config(table, prefix, found, num_blocks, each)
        candidates.append((mismatches(found, _file_shapes(table, prefix, config)), config))
    wrong, config = min(candidates, key=lambda candidate: len(candidate[0]))
    block_is_told = len(candidates) == 1 or any(wrong for wrong, _ in candidates)  # no: as many patches as channels
    not_floating = [
        f"{name} holds {array.dtype} instead of floating-point numbers"
        for name, array in found.items()
        if array.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64)
    ]
    return config, wrong + not_floating, block_is_told


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
    return ModelConfig(
        image_size=squarest_image(num_patches, patch_size),
        num_blocks=num_blocks,
        patch_size=patch_size,
        **{name: most_voted(name) for name in ("num_classes", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")},
        **{"block": block, **table.details},
    )
