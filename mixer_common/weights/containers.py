"""Containers of named arrays: safetensors, .npz, Flax's msgpack, torch.save's files; told apart by content.

Whatever the size, reading holds the arrays once, and writing copies one at a time.
"""

import io
import json
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from mixer_common.errors import UserError
from mixer_common.plugins import load_plugin

ByteCallback = Callable[[str, int, int], None]  # what happens, bytes done, bytes in all
Arrays = Mapping[str, np.ndarray]

_SAFETENSORS = {
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
# What zipfile and np.lib.format raise on a damaged file: a header is Python's syntax, and a shape may ask for more
# memory than there is.
_ZIP_ERRORS = (
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
# Flax's msgpack, flax/serialization.py: its extension types, and how it splits what is too large for one.
_NDARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK_BYTES = 2**30


def read(path: Path, progress: ByteCallback) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file, and the container that its content shows."""
    try:
        raw = _Counted(path, "r", "reading", progress)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a file of weights, or a run's folder.") from None
    with io.BufferedReader(raw, 2**20) as file:
        start = file.read(16)
        file.seek(0)
        container = _container(path, file, start)
        file.seek(0)
        if container == "torch":
            arrays = load_plugin("mlp_mixer.containers", "torch").read(path)
        else:
            arrays = _READERS[container](path, file)
        raw.finish()
    return arrays, container


def _container(path: Path, file: BinaryIO, start: bytes) -> str:
    if not start:
        raise UserError(f"{path} is empty: use another copy of the weights.")
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**32:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(file) as members:
                names = members.namelist()
        except _ZIP_ERRORS as error:
            raise _incomplete(path, "zip archive (.npz or torch.save's)", error) from None
        if any(name.endswith("/data.pkl") for name in names):
            return "torch"
        if all(name.endswith(".npy") for name in names):
            return "npz"
    if re.match(rb"\x80[\x02-\x05]", start):  # a pickle
        return "torch"
    if 0x80 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF):  # a map
        return "msgpack"
    raise UserError(
        f"{path} is no file of weights, it begins with {start[:8]!r}: expected safetensors, .npz, "
        "Flax's msgpack or a file of torch.save."
    )


def _incomplete(path: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f"{path} is no complete {what} ({error or type(error).__name__}): it was cut short or changed; "
        "use another copy."
    )


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header: names, sizes, and that they cover the file
            pass
    except SafetensorError as error:
        raise _incomplete(path, "safetensors file", error) from None
    size = struct.unpack("<Q", file.read(8))[0]
    arrays = {}
    for name, entry in json.loads(file.read(size)).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS:
            raise UserError(
                f"{path} holds {name} as {entry['dtype']}: expected floating-point numbers of 16 bits or "
                "more; convert them first."
            )
        array = np.empty(entry["shape"], _SAFETENSORS[entry["dtype"]])
        file.seek(8 + size + entry["data_offsets"][0])
        file.readinto(_bytes(array))
        arrays[name] = _widened(array) if entry["dtype"] == "BF16" else array
    return arrays


def _read_npz(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as members:
            arrays = {}
            for name in members.namelist():
                with members.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                # NumPy does not know bfloat16 and wrote what it saw, two bytes.
                arrays[name.removesuffix(".npy")] = _widened(array.view("<u2")) if array.dtype == "V2" else array
            return arrays
    except _ZIP_ERRORS as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise UserError(
                f"{path} holds pickled objects ({name}), which could run code, so it was not read: save "
                "arrays of floating-point numbers alone."
            ) from None
        raise _incomplete(path, ".npz file", error) from None


def _read_msgpack(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    size = path.stat().st_size  # no object in it can have more bytes or more parts
    unpacker = msgpack.Unpacker(
        file,
        ext_hook=_array,
        raw=False,
        strict_map_key=False,
        max_buffer_size=max(size, 2**20),
        read_size=2**20,
        max_array_len=size,
        max_map_len=size,
    )
    try:
        tree = unpacker.unpack()
        if unpacker.tell() != size:
            raise ValueError(f"{size - unpacker.tell()} bytes follow the end")
        return dict(_flat(tree, ""))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        msgpack.OutOfData,
        msgpack.UnpackException,
    ) as error:
        raise _incomplete(path, "msgpack file of Flax", error) from None


def _array(code: int, data: bytes) -> Any:
    """What Flax's extension types hold."""
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, dtype, values = msgpack.unpackb(data, raw=True)
    if dtype == b"bfloat16":
        return _widened(np.frombuffer(values, "<u2")).reshape(shape)
    array = np.frombuffer(values, np.dtype(dtype.decode())).reshape(shape)
    return array if code == _NDARRAY else array[()]


def _flat(tree: Any, prefix: str) -> Iterable[tuple[str, np.ndarray]]:
    """The arrays of a tree under their paths; steps, names and whatever else training left are no weights."""
    for name, value in tree.items():
        if isinstance(value, dict) and _CHUNKED in value:
            shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
            chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
            value = np.concatenate(chunks).reshape(shape)
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


def _widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as its bits: float32 with the same values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write(path: Path, suffix: str, arrays: Arrays, progress: ByteCallback) -> None:
    """Writes a file in the container that `suffix` names, one of WRITERS, and waits until it lies on the disk."""
    try:
        raw = _Counted(path, "w", "writing", progress, sum(array.nbytes for array in arrays.values()))
        with io.BufferedWriter(raw, 2**20) as file:
            WRITERS[suffix](file, arrays)
            file.flush()
            os.fsync(file.fileno())
            raw.finish()
    except OSError as error:
        error.filename = str(path)  # a full disk does not name it
        raise


def _write_safetensors(file: BinaryIO, arrays: Arrays) -> None:
    """The same bytes as safetensors' own `save`, which needs all of them in memory at once."""
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


def _write_npz(file: BinaryIO, arrays: Arrays) -> None:
    with zipfile.ZipFile(file, "w") as members:
        for name, array in arrays.items():
            # A ZipInfo carries no time, so that the same weights become the same bytes.
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _write_msgpack(file: BinaryIO, arrays: Arrays) -> None:
    """The same bytes as flax.serialization.msgpack_serialize of the tree."""
    tree: dict[str, Any] = {}
    for name in sorted(arrays, key=lambda name: name.split("/")):  # JAX sorts a tree
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = arrays[name]
    _pack(file, tree)


def _pack(file: BinaryIO, value: Any) -> None:
    packer = msgpack.Packer()
    if isinstance(value, np.ndarray) and value.nbytes > MAX_CHUNK_BYTES:
        flat, length = value.reshape(-1), max(1, MAX_CHUNK_BYTES // value.itemsize)
        chunks = [flat[i : i + length] for i in range(0, flat.size, length)]
        numbered = [{str(i): part for i, part in enumerate(parts)} for parts in (value.shape, chunks)]
        _pack(file, {_CHUNKED: True, "shape": numbered[0], "chunks": numbered[1]})
    elif isinstance(value, np.ndarray):
        file.write(packer.pack_ext_type(_NDARRAY, packer.pack((value.shape, value.dtype.name, value.tobytes()))))
    elif isinstance(value, dict):
        file.write(packer.pack_map_header(len(value)))
        for key, part in value.items():
            file.write(packer.pack(key))
            _pack(file, part)
    else:
        file.write(packer.pack(value))


def _write_torch(file: BinaryIO, arrays: Arrays) -> None:
    load_plugin("mlp_mixer.containers", "torch").write(file, arrays)


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))


class _Counted(io.FileIO):
    """A file that reports how much of it was read or written."""

    def __init__(self, path: Path, mode: str, what: str, progress: ByteCallback, total: int = 0):
        super().__init__(path, mode)
        self.what, self.progress = what, progress
        self.done, self.total = 0, total or path.stat().st_size

    def readinto(self, buffer: Any) -> int | None:
        return self._count(super().readinto(buffer))

    def write(self, data: Any) -> int | None:
        return self._count(super().write(data))

    def finish(self) -> None:
        self.progress(self.what, self.total, self.total)

    def _count(self, size: int | None) -> int | None:
        self.done += size or 0
        self.progress(self.what, min(self.done, self.total), self.total)
        return size


_READERS: dict[str, Callable[[Path, BinaryIO], dict[str, np.ndarray]]] = {
    "safetensors": _read_safetensors,
    "npz": _read_npz,
    "msgpack": _read_msgpack,
}
WRITERS: dict[str, Callable[[BinaryIO, Arrays], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".msgpack": _write_msgpack,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".bin": _write_torch,
}
