"""Layouts of single arrays, written as patterns of the canonical axes, and the mapping of a whole file to its model.

A pattern names the axes in the file's order. A convolution has the canonical axes o i h w (filters, colours, rows,
columns), a linear layer o i (out, in), everything else o. Parentheses hold axes that the file joins into one, and 1 is
an axis of length 1: "h w i o" is a convolution of Flax, "o (h w i)" a linear layer over a patch's pixels, and "o i 1" a
Conv1d of kernel 1.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError

_AXES = {4: "oihw", 2: "oi", 1: "o"}


class Source(NamedTuple):
    """The place of a canonical array in a file."""

    name: str
    pattern: str


Names = Mapping[str, Source]  # canonical name: its place; without those of biases that the file does not have


def from_pattern(array: np.ndarray, pattern: str, shape: tuple[int, ...]) -> np.ndarray:
    """The canonical array of the canonical `shape` from a file's; a view where NumPy can make one."""
    own = _AXES[len(shape)]
    order = re.sub(r"[() 1]", "", pattern)
    expanded = array.reshape([shape[own.index(axis)] for axis in order])
    return expanded.transpose([order.index(axis) for axis in own])


def to_pattern(array: np.ndarray, pattern: str) -> np.ndarray:
    """The file's array from the canonical one."""
    own = _AXES[array.ndim]
    order = re.sub(r"[() 1]", "", pattern)
    return array.transpose([own.index(axis) for axis in order]).reshape(file_shape(array.shape, pattern))


def axes(pattern: str) -> list[str]:
    """The parts of a pattern, one for each axis in the file."""
    return re.findall(r"\([^()]*\)|\S+", pattern)


def file_shape(shape: tuple[int, ...], pattern: str) -> tuple[int, ...]:
    """The shape in the file of a canonical array. Raises ValueError where the pattern does not fit its axes."""
    own = _AXES[len(shape)]
    if sorted(re.sub(r"[() 1]", "", pattern)) != sorted(own):
        raise ValueError(f"the layout {pattern!r} does not name the axes {' '.join(own)} once each")
    return tuple(math.prod(shape[own.index(axis)] for axis in part if axis in own) for part in axes(pattern))


def canonical_arrays(arrays: Mapping[str, np.ndarray], names: Names, config: ModelConfig) -> dict[str, np.ndarray]:
    """The canonical arrays; zeros where the file has no bias."""
    dtype = arrays[names["stem.weight"].name].dtype
    canonical = {}
    for name, shape in weight_shapes(config).items():
        source = names.get(name)
        canonical[name] = from_pattern(arrays[source.name], source.pattern, shape) if source else np.zeros(shape, dtype)
    return canonical


def file_arrays(canonical: Mapping[str, np.ndarray], names: Names, origin: str) -> dict[str, np.ndarray]:
    """Canonical arrays under the names and in the layouts of a file that `origin` names, in its order.

    Raises UserError for a bias that the file has no place for and that is not zero.
    """
    lost = [name for name, array in canonical.items() if name not in names and np.any(array)]
    if lost:
        raise UserError(
            f"{origin} has no place for {', '.join(lost)}, which are not zero: take a file of a model with biases."
        )
    return {source.name: to_pattern(canonical[name], source.pattern) for name, source in names.items()}


def describe_names(names: Names, config: ModelConfig) -> list[str]:
    """One line for each array: canonical name, the file's name and layout; and the biases that are missing."""
    width = max(map(len, names))
    lines = [f"{name:{width}}  {source.name}  ({source.pattern})" for name, source in names.items()]
    missing = [name for name in weight_shapes(config) if name not in names]
    return [*lines, *([f"zeros, since the file has none: {', '.join(missing)}"] if missing else [])]


def template(name: str) -> str:
    """A canonical name with {i} in place of the number of the block."""
    return re.sub(r"\.\d+\.", ".{i}.", name)


def template_shapes() -> dict[str, tuple[int, ...]]:
    """The template of every canonical name, with a shape that has as many axes."""
    return {template(name): shape for name, shape in weight_shapes(ModelConfig()).items()}


def canonical_pattern(num_axes: int) -> str:
    """The pattern of a canonical array with so many axes."""
    return " ".join(_AXES[num_axes])


def read_names(path: Path) -> dict[str, Source]:
    """The table of a TOML file: for a canonical name, the file's name, or its name and layout; {i} stands for the
    number of the block. The pattern is empty where the table leaves out the layout.

    Raises UserError where the file is missing or holds something else.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a TOML file of names.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML file ({error}): expected lines such as {_EXAMPLE}.") from None
    return names_of_table(table, str(path))


def names_of_table(table: Mapping[str, Any], origin: str) -> dict[str, Source]:
    """The names in such a table: a dict from canonical names to the file's name, or to {"name": ..., "layout":
    ...}. Raises UserError where it holds something else; `origin` names it."""
    names = {}
    known = template_shapes()
    for name, value in table.items():
        entry = {"name": value} if isinstance(value, str) else value
        if (
            not isinstance(entry, dict)
            or not {"name"} <= entry.keys() <= {"name", "layout"}
            or not all(isinstance(part, str) for part in entry.values())
        ):
            raise UserError(f"{origin}: {name} is {value!r}, but expected lines such as {_EXAMPLE}.")
        shape = known.get(template(name))
        if shape is None:
            raise UserError(f"{origin} names {name!r}, which is no array of a Mixer: choose one of {', '.join(known)}.")
        if "layout" in entry:
            try:
                file_shape(shape, entry["layout"])
            except ValueError as error:
                raise UserError(f"{origin}: {name}: {error}; write it as in {_EXAMPLE}.") from None
        names[name] = Source(entry["name"], entry.get("layout", ""))
    return names


_EXAMPLE = '"stem.weight" = {name = "embed.weight", layout = "o (h w i)"}'
