"""Arrays with an axis that their model does not have: one copy for each device, or all blocks in one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mixer_common.weights.reading import SEPARATOR, plain_array

_FEWEST_ARRAYS = 6  # of a block: two norms and four matrices, all without biases
_VALUE = re.compile(r"[./\\]value$")


def unstack(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arrays without such axes, and a note for people on each that went.

    arrays: flat; of NumPy, JAX or PyTorch. A state that flax.jax_utils.replicate has put on N devices has N equal
    copies in each array, along its first axis, and the first is taken. Blocks that nn.scan, nnx.scan or vmap run have
    one array for all, which becomes one for each. An NNX state that was stored with its variables has "value" at the
    end of each name, which goes.
    """
    notes = []
    if arrays and all(_VALUE.search(name) for name in arrays):
        arrays = {_VALUE.sub("", name): array for name, array in arrays.items()}
    copies = _leading_size(arrays)
    if copies and all(_are_equal(array) for array in arrays.values()):
        notes.append(f"the first of {copies} equal copies, one for each device")
        arrays = {name: plain_array(array)[0] for name, array in arrays.items()}
    result = dict(arrays)
    for parent in _stacked_parents(arrays):
        inner = {name: array for name, array in arrays.items() if name.startswith(parent)}
        count = _leading_size(inner)
        notes.append(f"the {count} blocks that {parent.rstrip('./')} holds in one")
        result = _divided(result, parent, count)
    return result, notes


def _leading_size(arrays: Mapping[str, Any]) -> int:
    """The length of the first axis, where all arrays have another axis and the same length; else 0."""
    shapes = [tuple(np.shape(array)) for array in arrays.values()]
    # A step's number that was replicated has no other axis.
    weights = [shape for shape in shapes if len(shape) > 1]
    sizes = {shape[0] for shape in shapes if shape}
    enough = len(weights) >= _FEWEST_ARRAYS and sum(len(shape) > 2 for shape in weights) >= 4
    return sizes.pop() if enough and len(sizes) == 1 and len(shapes) - len(weights) <= 2 else 0


def _are_equal(array: Any) -> bool:
    values = plain_array(array)
    return bool((values == values[:1]).all())


def _stacked_parents(arrays: Mapping[str, Any]) -> Iterator[str]:
    """The beginnings of the names, with their separators, of blocks that are one array each; the shortest ones."""
    parents = dict.fromkeys(name[: part.end()] for name in arrays for part in SEPARATOR.finditer(name))
    found: list[str] = []
    for parent in sorted(parents, key=len):
        inner = {name: array for name, array in arrays.items() if name.startswith(parent)}
        if not parent.startswith(tuple(found)) and len(inner) < len(arrays) and _leading_size(inner):
            found.append(parent)
            yield parent


def _divided(arrays: Mapping[str, Any], parent: str, count: int) -> dict[str, Any]:
    """The arrays with `count` blocks in place of those under `parent`, under the usual names where they are Flax's."""
    before, name, separator = re.fullmatch(r"(.*?)([^./\\]+)([./\\])", parent).groups()  # type: ignore[union-attr]
    name = "MixerBlock" if "MixerBlock" in name else re.sub(r"_0$", "", name)
    result = {}
    for path, array in arrays.items():
        if path.startswith(parent):
            values = plain_array(array)
            for number in range(count):
                result[f"{before}{name}_{number}{separator}{path.removeprefix(parent)}"] = values[number]
        else:
            result[path] = array
    return result
