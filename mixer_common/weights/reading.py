"""Arrays as others hold them, made NumPy's under flat names; and what the readers of several containers share."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_common.errors import UserError

SEPARATOR = re.compile(r"[./\\]")  # between the parts of an array's name


def incomplete_file(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a damaged file, which should be a `kind` of file."""
    return UserError(
        f"{path} is no complete {kind} ({error or type(error).__name__}): it was cut short or changed; "
        "use another copy."
    )


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers, of the same values, of bfloat16 numbers given as uint16 bits: NumPy has no bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def flatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as a flat one: the names are joined by slashes."""
    flat: dict[str, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(name)] = value
    return flat


def plain_array(value: Any) -> np.ndarray:
    """An array of JAX, a tensor of PyTorch on any device, or anything else as NumPy's; bfloat16 becomes float32."""
    if hasattr(value, "detach"):  # a tensor, perhaps a parameter
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array = np.asarray(value)
    return widen_bfloat16(array.view(np.uint16)) if array.dtype.name == "bfloat16" else array
