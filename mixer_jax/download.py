"""Downloads CIFAR-10 through TensorFlow Datasets (TFDS), with no TensorFlow present.

Twin of mixer_torch/download.py.
"""

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixer_common.data import DownloadError, host_answers

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the one that TFDS knows


def download_cifar10(data_dir: Path) -> None:
    """Downloads CIFAR-10, checks it and leaves it as `data_dir/cifar10/<version>/`, or leaves nothing.

    Raises:
      DownloadError: the host does not answer, the download breaks, or its checksum is wrong.
    """
    data_dir = Path(data_dir)
    if not host_answers(URL):
        raise DownloadError(URL, data_dir, "the host does not answer")

    import tensorflow_datasets as tfds

    print(f"Downloading CIFAR-10 (about 170 MB) from {URL} into {data_dir}", flush=True)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # What breaks off half-way stays in this folder and goes with it.
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as folder:
            builder: Any = tfds.builder("cifar10", data_dir=folder, file_format="array_record")
            # TFDS's own needs TensorFlow to unpack the archive and to encode the images.
            builder._split_generators = _split_generators
            builder.download_and_prepare(
                download_dir=f"{folder}/downloads",
                download_config=tfds.download.DownloadConfig(force_checksums_validation=True),
            )
            prepared = Path(builder.data_dir)
            (data_dir / "cifar10").mkdir(exist_ok=True)
            prepared.rename(data_dir / "cifar10" / prepared.name)
    except Exception as error:  # TFDS lets its own kinds through, and those of requests and urllib3
        raise DownloadError(URL, data_dir, error) from error


def _split_generators(dl_manager) -> dict[str, Iterator]:
    """The examples of each split, as TFDS's builder of CIFAR-10 yields them."""
    with tarfile.open(dl_manager.download(URL)) as tar:
        opened = ((member.name, tar.extractfile(member)) for member in tar.getmembers())
        batches = {Path(name).stem: file.read() for name, file in opened if file is not None}
    train = b"".join(batches[f"data_batch_{number}"] for number in range(1, 6))
    return {"train": _examples("train", train), "test": _examples("test", batches["test_batch"])}


def _examples(split: str, rows: bytes) -> Iterator[tuple[int, dict]]:
    """Each row is a label, one byte, and a 3x32x32 image."""
    for index, row in enumerate(np.frombuffer(rows, np.uint8).reshape(-1, 1 + 3 * 32 * 32)):
        image = np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        yield index, {"id": f"{split}_{index:05d}", "image": Image.fromarray(image), "label": int(row[0])}
