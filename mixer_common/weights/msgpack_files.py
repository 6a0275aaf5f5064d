"""Flax's msgpack files: a tree of dicts with arrays as its leaves; the format is that of flax/serialization.py."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from mixer_common.errors import UserError
from mixer_common.weights.reading import incomplete_file, widen_bfloat16

# Flax's extension types, and the key by which it marks an array that was too large for one and was split.
_NDARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK_BYTES = 2**30


class _UnknownNumbers(Exception):
    """Numbers of a type that NumPy does not know; its text is the type's name."""


def read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a file that is open at its start, under their paths ("head/kernel"); bfloat16 becomes float32.

    Raises UserError where it is damaged.
    """
    size = path.stat().st_size  # no object in it can have more bytes or more parts
    unpacker = msgpack.Unpacker(
        file,
        ext_hook=_unpack_extension,
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
        return dict(_leaves(tree, ""))
    except _UnknownNumbers as error:
        raise UserError(
            f"{path} holds numbers of the type {error}: expected floating-point numbers of 16 bits or more; convert "
            "them first."
        ) from None
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        msgpack.OutOfData,
        msgpack.UnpackException,
    ) as error:
        raise incomplete_file(path, "msgpack file of Flax", error) from None


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays as a tree by their paths: the same bytes as flax.serialization.msgpack_serialize."""
    tree: dict[str, Any] = {}
    for name in sorted(arrays, key=lambda name: name.split("/")):  # JAX sorts a tree
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = arrays[name]
    _pack(file, tree)


def _unpack_extension(code: int, data: bytes) -> Any:
    """The array or the scalar in one of Flax's extension types. Raises _UnknownNumbers for those NumPy cannot hold."""
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, dtype, values = msgpack.unpackb(data, raw=True)
    if dtype == b"bfloat16":
        return widen_bfloat16(np.frombuffer(values, "<u2")).reshape(shape)
    name = dtype.decode()
    if name.startswith(("float8", "float6_", "float4_")):
        raise _UnknownNumbers(name)
    array = np.frombuffer(values, np.dtype(name)).reshape(shape)
    return array if code == _NDARRAY else array[()]


def _leaves(tree: Any, prefix: str) -> Iterable[tuple[str, np.ndarray]]:
    """The arrays of a tree under their paths; steps, names and whatever else training left are no weights."""
    for name, value in tree.items():
        if isinstance(value, dict) and _CHUNKED in value:
            shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
            chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
            value = np.concatenate(chunks).reshape(shape)
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


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
