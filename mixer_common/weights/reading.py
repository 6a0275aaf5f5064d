"""The parts that the readers of several containers share."""

from pathlib import Path

import numpy as np

from mixer_common.errors import UserError


def incomplete_file(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a damaged file, which should be a `kind` of file."""
    return UserError(
        f"{path} is no complete {kind} ({error or type(error).__name__}): it was cut short or changed; "
        "use another copy."
    )


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers, of the same values, of bfloat16 numbers given as uint16 bits: NumPy has no bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
