"""A small CIFAR-10 of random images in each of the formats that the real one comes in, and checks of what is read."""

import contextlib
import functools
import hashlib
import http.server
import io
import pickle
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixer_common.data import Dataset, load_dataset
from mixer_common.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_BATCH = 40


def small_cifar10() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (uint8 (200, 32, 32, 3), int (200,)), "test": (40 of each)}."""
    rng = np.random.default_rng(0)

    def split(size):
        return rng.integers(0, 256, (size, 32, 32, 3), np.uint8), rng.integers(0, 10, size)

    return {"train": split(5 * PER_BATCH), "test": split(PER_BATCH)}


def batches(data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The data cut up as CIFAR-10's archives do: data_batch_1 to data_batch_5 and test_batch."""
    images, labels = (np.split(array, 5) for array in data["train"])
    train = enumerate(zip(images, labels, strict=True), 1)
    return {**{f"data_batch_{number}": batch for number, batch in train}, "test_batch": data["test"]}


def python_files(data) -> dict[str, bytes]:
    """The files of cifar-10-batches-py."""
    files = {name: pickled_batch(*batch) for name, batch in batches(data).items()}
    files["batches.meta"] = python2_pickle({"label_names": list(CLASS_NAMES), "num_vis": 3072})
    return files


def pickled_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return python2_pickle(
        {
            "batch_label": "a batch",
            "labels": labels.tolist(),
            "data": rows_of(images),
            "filenames": [f"{index}.png" for index in range(len(images))],
        }
    )


def rows_of(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 3072), each row a 3x32x32 image."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


class _Python2Pickler(pickle._Pickler):
    """Writes strings and NumPy's names as Python 2 did, in which CIFAR-10 was published."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (the base class has it so)

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global


def python2_pickle(value) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def write_batches_folder(folder: Path, data) -> Path:
    batches_folder = folder / "cifar-10-batches-py"
    batches_folder.mkdir(parents=True)
    for name, content in python_files(data).items():
        (batches_folder / name).write_bytes(content)
    return batches_folder


def python_archive(data) -> bytes:
    """cifar-10-python.tar.gz."""
    return _tar_gz({f"cifar-10-batches-py/{name}": content for name, content in python_files(data).items()})


def binary_archive(data) -> bytes:
    """cifar-10-binary.tar.gz: rows of a label byte and an image."""
    folder = "cifar-10-batches-bin"
    files = {f"{folder}/batches.meta.txt": "\n".join([*CLASS_NAMES, "", ""]).encode()}
    for name, (images, labels) in batches(data).items():
        files[f"{folder}/{name}.bin"] = np.column_stack([labels.astype(np.uint8), rows_of(images)]).tobytes()
    return _tar_gz(files)


def _tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def encode(image: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def write_parquet(folder: Path, data, shards: int = 1, image_column: str = "img") -> Path:
    """Files named and laid out as Hugging Face's uoft-cs/cifar10."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in data.items():
        for shard, rows in enumerate(np.array_split(np.arange(len(images)), shards)):
            encoded = [{"bytes": encode(images[row]), "path": None} for row in rows]
            table = parquet_table(encoded, labels[rows], image_column)
            pq.write_table(table, folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def parquet_table(encoded: list, labels, image_column: str = "img") -> pa.Table:
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({image_column: pa.array(encoded, image_type), "label": pa.array(labels)})


@contextlib.contextmanager
def serve(folder: Path):
    """Serves a folder over HTTP on a free port of this machine; yields the URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, outputfile):
            with contextlib.suppress(ConnectionError):
                super().copyfile(source, outputfile)

    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port_url() -> str:
    """A URL at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/cifar.tar.gz"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def load(folder: Path) -> Dataset:
    """CIFAR-10 from the folder, never downloaded."""
    return load_dataset("cifar10", folder, None)


def assert_is(dataset, data):
    """The arrays are those of `data`, in its order, in the types that the interface promises."""
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.flags.c_contiguous
        np.testing.assert_array_equal(images, data[split][0])
        np.testing.assert_array_equal(labels, data[split][1])
    assert dataset.name == "cifar10"
    assert dataset.class_names == CLASS_NAMES
    assert dataset.notice is None


def refused(folder: Path, *parts: str) -> str:
    """Loading fails with a UserError of one line that contains all `parts`, under "auto" as well."""
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    with pytest.raises(UserError):
        load_dataset("auto", folder, None)
    return message
