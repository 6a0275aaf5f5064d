"""Distances in units in the last place: how many floating-point numbers lie between two."""

import numpy as np

# Bits of the significand that are stored, by the name of the dtype.
_SIGNIFICAND_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
_UNSIGNED = {"float64": np.uint64, "float32": np.uint32, "float16": np.uint16}


def lower_dtype(a: np.dtype, b: np.dtype) -> str:
    """The name of the one that has fewer bits in its significand."""
    return min(a.name, b.name, key=_SIGNIFICAND_BITS.__getitem__)


def ulp_distances(a: np.ndarray, b: np.ndarray, dtype: str) -> np.ndarray:
    """How many steps from one number of the dtype to the next lie between the entries, uint64; over zero, too.

    a and b: finite and of one shape; they are rounded to the dtype, "float64", "float32", "float16" or "bfloat16".
    Both zeros count as one number.
    """
    first, second = _positions(a, dtype), _positions(b, dtype)
    return np.maximum(first, second) - np.minimum(first, second)


def _positions(array: np.ndarray, dtype: str) -> np.ndarray:
    """Each number's place in the order of all numbers of the dtype; that of zero is 2^63."""
    if dtype == "bfloat16":  # the upper half of a float32, rounded to even
        bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
        bits = (bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
        sign = np.uint64(15)
    else:
        with np.errstate(over="ignore"):
            bits = array.astype(dtype).view(_UNSIGNED[dtype])
        sign = np.uint64(8 * bits.itemsize - 1)
        bits = bits.astype(np.uint64)
    magnitude = bits & ((np.uint64(1) << sign) - np.uint64(1))
    zero = np.uint64(1 << 63)
    return np.where(bits >> sign, zero - magnitude, zero + magnitude)
