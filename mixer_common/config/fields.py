"""Dataclasses of numbers and choices: checking them, reading them back, finding them by name."""

import difflib
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin

import numpy as np

from mixer_common.errors import UserError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T")
D = TypeVar("D", bound=_Dataclass)


def by_name(kind: str, table: dict[str, T], name: str) -> T:
    """table[name]. Raises UserError for an unknown name, with a list of all; `kind` says what they are names of."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"unknown {kind} {name!r}{hint}: choose one of {', '.join(table)}.")
    return table[name]


def check_fields(config: Any) -> None:
    """Raises UserError where a field of a dataclass does not hold what its annotation says.

    The annotations may be int, float, bool, a Literal, or a tuple of names; fields of other types are not looked at. A
    number of NumPy's becomes Python's, so that it can be written as JSON.
    """
    for field in fields(config):
        value, kind = getattr(config, field.name), field.type
        if isinstance(value, np.generic) and kind in (int, float, bool):
            value = value.item()
            object.__setattr__(config, field.name, value)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise UserError(f"{field.name} is {value!r}: choose one of {', '.join(map(str, get_args(kind)))}.")
        elif get_origin(kind) is tuple:
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{field.name} is {value!r}, but must be a list of names.")
        elif kind is bool and not isinstance(value, bool):
            raise UserError(f"{field.name} is {value!r}, but must be true or false.")
        elif kind is int and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{field.name} is {value!r}, but must be a whole number.")
        elif kind is float and (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or value != value
            or abs(value) == float("inf")
        ):
            raise UserError(f"{field.name} is {value!r}, but must be a finite number.")


def from_dict(kind: type[D], values: Any, origin: str) -> D:
    """A dataclass of type `kind` from the JSON object that its `asdict` was written as.

    A field that has a default may be missing, since the file may be older than the field. Raises UserError where
    another field is missing or unknown; `origin` names the file in it.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin} is missing or no JSON object: it was written by another version or changed.")
    names = {field.name for field in fields(kind)}
    required = {field.name for field in fields(kind) if field.default is MISSING}
    given = set(values)
    if not required <= given <= names:
        raise UserError(
            f"{origin} does not hold a {kind.__name__}: missing {sorted(required - given)}, "
            f"unknown {sorted(given - names)}; it was written by another version or changed."
        )
    tuples = {field.name for field in fields(kind) if get_origin(field.type) is tuple}
    return kind(
        **{
            name: tuple(value) if name in tuples and isinstance(value, list) else value
            for name, value in values.items()
        }
    )
