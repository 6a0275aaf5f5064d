"""The weights of somebody's module: which of its arrays is which, also where the module is not wholly a Mixer."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mixer_common.comparison.recording import Arrays
from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.patterns import Source, canonical_arrays, file_arrays
from mixer_common.weights.pixels import OWN_SCALE, PixelScale, fold_scale, is_scale, scale_in_arrays
from mixer_common.weights.recognition import recognise_weights
from mixer_common.weights.structure import AmbiguousStructure, NoStructure, Structure, recognise_structure
from mixer_common.weights.wrapping import choose_weights, find_weights

_NO_NORM = "no final norm"


@dataclass(frozen=True)
class ModuleWeights:
    """A module's weights in canonical form, and the way back to its own arrays."""

    config: ModelConfig
    arrays: dict[str, np.ndarray]  # canonical, for pixels from -1 to 1; without what the module does not have
    names: Mapping[str, str]  # canonical name: the module's
    to_module: Callable[[Arrays], dict[str, np.ndarray]]  # canonical arrays to the module's
    to_canonical: Callable[[Arrays], dict[str, np.ndarray]]  # gradients of the module's arrays to canonical ones
    takes: PixelScale  # the scale of the pixels that it is given
    layouts: Mapping[str, str]  # canonical name: a pattern of weights.patterns, or the format that tells it
    observations: tuple[str, ...] = field(default=())  # for people: what is no part of a Mixer, and what is missing
    folded: bool = False  # whether the stem's weights in `arrays` are those for another scale than its own

    def owner(self, layer: str) -> str | None:
        """The path of the submodule that holds a layer's weight; None where there is none."""
        name = self.names.get(f"{layer}.weight")
        return None if name is None else module_path(name)


def module_path(name: str) -> str:
    """What stands before the last separator of an array's name."""
    return name[: max(name.rfind(separator) for separator in "./")] if any(s in name for s in "./") else ""


def recognise_module(
    arrays: Arrays,
    origin: str,
    pixels: PixelScale | None = None,
    names: Mapping[str, Source] | None = None,
    **details: Any,
) -> tuple[list[ModuleWeights], UserError | None]:
    """The Mixer in a module's own arrays: every mapping that fits, and an error where the arrays favour none.

    pixels: the scale that the module takes; None: pixels of 0 to 1 where the module holds a mean and a deviation of
    its own, else those of this project. names, details: see weights.recognition.recognise_weights.
    What is no part of a Mixer is left out, and a final norm may be missing; both are observations. Raises UserError
    where there is no Mixer.
    """
    takes, folded, names_of_scale = _scales(arrays, pixels, origin)
    weights = {name: array for name, array in arrays.items() if name not in names_of_scale}
    if not names:
        with contextlib.suppress(UserError):
            return [_with_scale(each, takes, folded) for each in _by_table(weights, origin, details)], None
    structures, observations, ambiguous = _structures(weights, origin, names or {}, details)
    found = [_of_structure(weights, structure, origin, details, observations) for structure in structures]
    return [_with_scale(each, takes, folded) for each in found], ambiguous


def _scales(arrays: Arrays, stated: PixelScale | None, origin: str) -> tuple[PixelScale, PixelScale, list[str]]:
    """The scale of the pixels that a module is given, that of the pixels that its stem sees, and the names of the
    arrays with which it changes the one to the other."""
    buffers = {name: array for name, array in arrays.items() if is_scale(name)}
    own = scale_in_arrays(buffers, origin)
    if own is None:
        takes = stated or OWN_SCALE
        return takes, takes, []
    (mean, std), names = own
    unit = 255.0 if max(float(np.max(buffers[name])) for name in names) > 1 else 1.0
    takes = stated or PixelScale((0.0, 0.0, 0.0), (1 / unit, 1 / unit, 1 / unit))
    seen = PixelScale(
        tuple(m + s * unit * inner for m, s, inner in zip(*takes, mean, strict=True)),  # type: ignore[arg-type]
        tuple(s * unit * inner for s, inner in zip(takes.std, std, strict=True)),  # type: ignore[arg-type]
    )
    return takes, seen, names


def _by_table(arrays: Arrays, origin: str, details: dict[str, Any]) -> list[ModuleWeights]:
    """The mapping of a format whose names the arrays have, for each block that fits. Raises UserError where they do not
    fit it."""
    sets = find_weights(list(arrays))
    if not sets:
        raise UserError(f"{origin} has names that no table knows.")
    (format, table, prefix, num_blocks, _), _ = choose_weights(sets, None, origin)
    found = recognise_weights(arrays, origin, **details)
    others = [recognise_weights(arrays, origin, **details, block="tutorial")] if "block" in found.assumed else []
    names = {name: prefix + table.file_name(name, num_blocks) for name in found.arrays}
    shapes = weight_shapes(found.config)

    def to_module(canonical: Arrays) -> dict[str, np.ndarray]:
        file = {prefix + name: array for name, array in table.to_file(canonical, num_blocks).items()}
        return {name: array.reshape(arrays[name].shape) for name, array in file.items()}

    def to_canonical(own: Arrays) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(table.from_file(name, table.accept(own_name, own[own_name]), shapes[name]))
            for name, own_name in names.items()
            if own_name in own
        }

    layouts = dict.fromkeys(names, format)
    canonical = to_canonical(arrays)
    return [
        ModuleWeights(each.config, canonical, names, to_module, to_canonical, OWN_SCALE, layouts)
        for each in (found, *others)
    ]


def _structures(
    arrays: Arrays, origin: str, names: Mapping[str, Source], details: Mapping[str, Any]
) -> tuple[Sequence[Structure], list[str], UserError | None]:
    """The mappings that the shapes and the order of the arrays allow, what is no part of a Mixer, and the error of
    several mappings."""
    for kept, observations in _attempts(arrays):
        shapes = {name: tuple(array.shape) for name, array in kept.items()}
        try:
            found = [recognise_structure(shapes, origin, details.get("block"), names)]
            if not found[0].block_is_told:  # as many patches as channels
                found.append(recognise_structure(shapes, origin, "tutorial", names))
            return found, observations, None
        except AmbiguousStructure as error:
            return error.structures, observations, error
        except NoStructure:
            continue
    some = ", ".join(f"{name} {tuple(array.shape)}" for name, array in list(arrays.items())[:4]) or "none"
    raise UserError(
        f"{origin} has no structure of an MLP-Mixer, blocks of two norms and four matrices between a stem and a "
        f"head; its {len(arrays)} arrays begin with {some}."
    )


def _of_structure(
    arrays: Arrays, structure: Structure, origin: str, details: dict[str, Any], observations: list[str]
) -> ModuleWeights:
    """The weights by one mapping."""
    sources = {name: source for name, source in structure.names.items() if not source.name.startswith(_NO_NORM)}
    config = replace(structure.config, **details)
    if config.num_patches != structure.config.num_patches:
        raise UserError(f"{origin} mixes {structure.config.num_patches} patches, not {config.num_patches}.")

    def to_module(canonical: Arrays) -> dict[str, np.ndarray]:
        return file_arrays({name: canonical[name] for name in canonical if not _absent(name)}, sources, origin)

    def to_canonical(own: Arrays) -> dict[str, np.ndarray]:
        there = {name: source for name, source in sources.items() if source.name in own}
        if there.keys() != sources.keys():
            own = {**{source.name: np.zeros(arrays[source.name].shape) for source in sources.values()}, **own}
        full = canonical_arrays({**own, **_no_norm(config.hidden_dim)}, structure.names, config)
        return {
            name: np.ascontiguousarray(array)
            for name, array in full.items()
            if not _absent(name) and (name in there or name not in sources)
        }

    def _absent(name: str) -> bool:
        return name in structure.names and name not in sources

    own_names = {name: source.name for name, source in sources.items()}
    return ModuleWeights(
        config,
        to_canonical(arrays),
        own_names,
        to_module,
        to_canonical,
        OWN_SCALE,
        {name: source.pattern for name, source in sources.items()},
        tuple(observations),
    )


def _attempts(arrays: Arrays) -> Iterator[tuple[dict[str, np.ndarray], list[str]]]:
    """The arrays without those that no Mixer has, such as a class token; each time also with a final norm that may be
    missing."""
    extra = [
        name
        for name, array in arrays.items()
        if array.ndim == 0 or (array.ndim in (2, 3) and array.shape[0] == 1 and not name.endswith(("kernel", "weight")))
    ]
    for left_out in (extra, []) if extra else ([],):
        kept = {name: array for name, array in arrays.items() if name not in left_out}
        seen = [f"It has {name} of shape {arrays[name].shape}, which no Mixer has." for name in left_out]
        yield kept, seen
        for size in dict.fromkeys(len(array) for array in kept.values() if array.ndim == 1):
            yield kept | _no_norm(size), [*seen, "It has no norm after the last block."]


def _no_norm(size: int) -> dict[str, np.ndarray]:
    """A norm that changes nothing but what every norm does, under a name that no module has."""
    return {f"{_NO_NORM}.weight": np.ones(size), f"{_NO_NORM}.bias": np.zeros(size)}


def _with_scale(weights: ModuleWeights, takes: PixelScale, scale: PixelScale) -> ModuleWeights:
    """The same for a module that is given pixels of the scale `takes` and whose stem sees pixels of another scale: the
    stem's weights are folded, as in a file."""
    if scale == OWN_SCALE:
        return replace(weights, takes=takes)
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in scale)

    def to_module(canonical: Arrays) -> dict[str, np.ndarray]:
        kernel, bias = canonical["stem.weight"], canonical["stem.bias"]
        wide = kernel.astype(np.float64)
        unfolded = {"stem.weight": wide * 2 * std, "stem.bias": bias - (wide * (1 - 2 * mean)).sum((1, 2, 3))}
        return weights.to_module({**canonical, **unfolded})

    def to_canonical(own: Arrays) -> dict[str, np.ndarray]:
        # What a gradient becomes: the bias of the module depends on the folded filters, too.
        found = weights.to_canonical(own)
        if "stem.weight" in found:
            kernel, bias = found["stem.weight"], found.get("stem.bias", np.zeros(len(found["stem.weight"])))
            through_bias = bias[:, None, None, None] * (1 - 2 * mean)
            found["stem.weight"] = (kernel * 2 * std - through_bias).astype(kernel.dtype)
        return found

    folded = fold_scale(ModelWeights(weights.config, weights.arrays, "structure"), scale).arrays
    return replace(weights, arrays=folded, to_module=to_module, to_canonical=to_canonical, takes=takes, folded=True)
