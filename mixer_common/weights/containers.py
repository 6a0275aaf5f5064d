"""The containers of named arrays: safetensors, .npz, Flax's msgpack, torch.save's files, Orbax' folders; known by
their content.

A new container has a module with the functions `read` and `write`, an entry in each of _READERS and WRITERS, and a
line in `_container` that recognises its first bytes. Whatever the size, reading holds the arrays once, and writing
copies one at a time.
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixer_common.errors import UserError
from mixer_common.plugins import load_plugin
from mixer_common.weights import msgpack_files, npz_files, safetensors_files
from mixer_common.weights.reading import incomplete_file

ByteCallback = Callable[[str, int, int], None]  # takes the activity, "reading" or "writing", bytes done, bytes in all
Arrays = Mapping[str, np.ndarray]


def read(path: Path, progress: ByteCallback) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a file, and the name of its container.

    A folder is one of Orbax, which JAX reads. Raises UserError where the file is missing, of no known container,
    damaged, or would run code.
    """
    if path.is_dir():
        return _read_orbax(path), "msgpack"
    try:
        raw = _CountedFile(path, "r", "reading", progress)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a file of weights, or a run's folder.") from None
    with io.BufferedReader(raw, 2**20) as file:
        start = file.read(16)
        file.seek(0)
        container = _container(path, file, start)
        file.seek(0)
        arrays = _READERS[container](path, file)
        raw.finish()
    return arrays, container


def write(path: Path, suffix: str, arrays: Arrays, progress: ByteCallback) -> None:
    """Writes a file in the container that `suffix` names, a key of WRITERS, and waits until it lies on the disk."""
    try:
        raw = _CountedFile(path, "w", "writing", progress, sum(array.nbytes for array in arrays.values()))
        with io.BufferedWriter(raw, 2**20) as file:
            WRITERS[suffix](file, arrays)
            file.flush()
            os.fsync(file.fileno())
            raw.finish()
    except OSError as error:
        error.filename = str(path)  # a full disk does not name it
        raise


def _container(path: Path, file: BinaryIO, start: bytes) -> str:
    """The key of _READERS for a file that begins with the bytes `start`."""
    if not start:
        raise UserError(f"{path} is empty: use another copy of the weights.")
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**32:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(file) as members:
                names = members.namelist()
        except npz_files.ZIP_ERRORS as error:
            raise incomplete_file(path, "zip archive (.npz or torch.save's)", error) from None
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


class _CountedFile(io.FileIO):
    """A file that reports how much of it was read or written."""

    def __init__(self, path: Path, mode: str, activity: str, progress: ByteCallback, total: int = 0):
        super().__init__(path, mode)
        self.activity, self.progress = activity, progress
        self.done, self.total = 0, total or path.stat().st_size

    def readinto(self, buffer: Any) -> int | None:
        return self._count(super().readinto(buffer))

    def write(self, data: Any) -> int | None:
        return self._count(super().write(data))

    def finish(self) -> None:
        self.progress(self.activity, self.total, self.total)

    def _count(self, size: int | None) -> int | None:
        self.done += size or 0
        self.progress(self.activity, min(self.done, self.total), self.total)
        return size


def _read_orbax(path: Path) -> dict[str, np.ndarray]:
    try:
        reader = load_plugin("mlp_mixer.containers", "jax")
    except UserError as error:
        raise UserError(
            f"{path} is a folder of Orbax: {str(error).rstrip('.')}, or where JAX is, write its tree to a file with "
            "flax.serialization.msgpack_serialize."
        ) from None
    return reader.read(path)


def _read_torch(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    return load_plugin("mlp_mixer.containers", "torch").read(path)


def _write_torch(file: BinaryIO, arrays: Arrays) -> None:
    load_plugin("mlp_mixer.containers", "torch").write(file, arrays)


_READERS: dict[str, Callable[[Path, Any], dict[str, np.ndarray]]] = {
    "safetensors": safetensors_files.read,
    "npz": npz_files.read,
    "msgpack": msgpack_files.read,
    "torch": _read_torch,
}
# By the ending of a file's name.
WRITERS: dict[str, Callable[[BinaryIO, Arrays], None]] = {
    ".safetensors": safetensors_files.write,
    ".npz": npz_files.write,
    ".msgpack": msgpack_files.write,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".bin": _write_torch,
}
