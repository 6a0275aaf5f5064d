"""NumPy's .npz files: a zip archive with one .npy file for each array."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mixer_common.errors import UserError
from mixer_common.weights.reading import incomplete_file, widen_bfloat16

# The exceptions of zipfile and np.lib.format for a damaged file: a header is Python's syntax, and a shape may need
# more memory than there is.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    RuntimeError,
    OSError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
)


def read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a file that is open at its start; bfloat16 becomes float32.

    Raises UserError where it is damaged or holds pickled objects, which are not read.
    """
    name = ""
    try:
        with zipfile.ZipFile(file) as members:
            arrays = {}
            for name in members.namelist():
                with members.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                # NumPy does not know bfloat16 and writes it as two bytes of any kind.
                arrays[name.removesuffix(".npy")] = widen_bfloat16(array.view("<u2")) if array.dtype == "V2" else array
            return arrays
    except ZIP_ERRORS as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise UserError(
                f"{path} holds pickled objects ({name}), which could run code, so it was not read: save "
                "arrays of floating-point numbers alone."
            ) from None
        raise incomplete_file(path, ".npz file", error) from None


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays, not compressed, as np.savez does."""
    with zipfile.ZipFile(file, "w") as members:
        for name, array in arrays.items():
            # A ZipInfo carries no time, so that the same weights become the same bytes.
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
