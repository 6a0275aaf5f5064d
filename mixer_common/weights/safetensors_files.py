"""Files in the safetensors format: a header in JSON, then the bytes of the arrays."""

import json
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mixer_common.errors import UserError
from mixer_common.weights.reading import incomplete_file, widen_bfloat16

# The entry of a file's metadata that makes it a recording of a comparison; see comparison/recording_files.py.
RECORDING_KEY = "mlp_mixer_recording"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


def read(path: Path, file: BufferedReader) -> dict[str, np.ndarray]:
    """The arrays of a file that is open at its start; bfloat16 becomes float32.

    Raises UserError where it is damaged, a recording, or holds numbers that NumPy does not know.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header: names, sizes, and that they cover the file
            pass
    except SafetensorError as error:
        raise incomplete_file(path, "safetensors file", error) from None
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
    if RECORDING_KEY in header.get("__metadata__", {}):
        raise UserError(
            f"{path} is a recording of what a model computed, no file of weights: compare.py takes it as a side; name "
            "the weights that it was made with."
        )
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise UserError(
                f"{path} holds {name} as {entry['dtype']}: expected floating-point numbers of 16 bits or "
                "more; convert them first."
            )
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        file.seek(8 + size + entry["data_offsets"][0])
        file.readinto(_bytes(array))
        arrays[name] = widen_bfloat16(array) if entry["dtype"] == "BF16" else array
    return arrays


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes floating-point arrays: the same bytes as safetensors' own `save`, which needs all of them in memory."""
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": f"F{8 * arrays[name].itemsize}",
            "shape": arrays[name].shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(_bytes(np.ascontiguousarray(arrays[name])))


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
