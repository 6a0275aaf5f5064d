"""CIFAR-10 in its original Python batches: pickles, read without running any code that they name."""

import gzip
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mixer_common.data.decode import Split, check_labels
from mixer_common.errors import UserError

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCHES = ("test_batch",)


def read_batches_folder(folder: Path) -> tuple[Split, Split]:
    """The training and the test split from the unpacked folder cifar-10-batches-py.

    Raises:
      UserError: a batch is missing, truncated, or not as CIFAR-10's batches are.
    """
    batches = {}
    for name in TRAIN_BATCHES + TEST_BATCHES:
        try:
            batches[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{folder / name} cannot be read ({error.strerror}): remove the folder or unpack it again."
            ) from None
    return _splits(batches, folder)


def read_archive(archive: Path) -> tuple[Split, Split]:
    """The training and the test split from cifar-10-python.tar.gz or .tar, which is not unpacked.

    Raises:
      UserError: the archive is truncated or lacks a batch, or a batch is not as CIFAR-10's batches are.
    """
    batches = {}
    try:
        with _open_archive(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if name in TRAIN_BATCHES + TEST_BATCHES and member.isfile() and (file := tar.extractfile(member)):
                    batches[name] = file.read()
            stream.read()  # to the very end, where gzip's checksum of it all is compared
    except PermissionError:
        raise UserError(f"{archive} may not be read: check its permissions.") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{archive} is truncated or damaged ({error}): fetch it again.") from error
    missing = [name for name in TRAIN_BATCHES + TEST_BATCHES if name not in batches]
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}: fetch CIFAR-10's Python archive again.")
    return _splits(batches, archive)


def _open_archive(archive: Path) -> BinaryIO:
    """The archive, unpacked where it is packed; browsers and some tools unpack it and keep its name."""
    file = archive.open("rb")
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast(BinaryIO, gzip.open(file)) if is_packed else file


def _splits(batches: dict[str, bytes], origin: Path) -> tuple[Split, Split]:
    def split(names: tuple[str, ...]) -> Split:
        read = [_read_batch(batches[name], f"{origin}/{name}") for name in names]
        images, labels = zip(*read, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    return split(TRAIN_BATCHES), split(TEST_BATCHES)


def _read_batch(pickled: bytes, origin: str) -> Split:
    """The images and labels of one pickled dict.

    Its `data` is uint8 (N, 3072), each row a 3x32x32 image; its `labels` is a list of N ints.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(pickled), encoding="bytes").load()
        # Keys are bytes as Python 2 wrote them, str in a batch that was written again since.
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels = fields["data"].to_numpy()
        labels = fields["labels"]
        if not all(type(label) is int for label in labels):
            raise TypeError("a label is not an integer")
        labels = np.array(labels, np.int64)
        if pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32 or labels.shape != pixels.shape[:1]:
            raise ValueError(f"data {pixels.shape}, {len(labels)} labels; expected (N, 3072), N labels")
    # The pickle module says of malformed input: any exception may be raised.
    except Exception as error:
        raise UserError(f"{origin} is no batch of CIFAR-10 ({error!r}): fetch the data again.") from error
    check_labels(labels, origin)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


class _PickledObject:
    """The arguments and the state of one object in a pickled NumPy array; no code is run to make it one."""

    def __init__(self, *args):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state):
        self.state = state

    def to_numpy(self) -> np.ndarray:
        _version, shape, dtype, is_fortran, raw = self.state
        if dtype.args[0] not in (b"u1", "u1"):
            raise ValueError(f"data of type {dtype.args[0]!r}, expected 'u1'")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _BatchUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, numbers and strings, and arrays as _PickledObject; refuses all other names.

    An ordinary pickle may name any function of any module and call it while it is read.
    """

    ARRAY_NAMES = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),  # as NumPy 2 writes it
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module, name):
        if (module, name) in self.ARRAY_NAMES:
            return _PickledObject
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 never does")
