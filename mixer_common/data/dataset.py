"""The data sets by name, and which one `auto` means."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mixer_common.data.cifar10 import find_cifar10
from mixer_common.data.decode import CLASS_NAMES
from mixer_common.data.digits import load_digits
from mixer_common.data.download import DownloadError
from mixer_common.errors import UserError

DATASETS = ("auto", "cifar10", "digits")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with their labels."""

    name: str  # "cifar10" or "digits"
    source: str  # for people: the format and the folder
    train_images: np.ndarray  # uint8 (N, H, W, 3), C-contiguous
    train_labels: np.ndarray  # int32 (N,)
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    notice: str | None = None  # one sentence for people, where `auto` fell back to digits

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of all images and labels; equal data have equal fingerprints."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(array.data)
        return digest.hexdigest()[:16]


def default_data_dir() -> Path:
    """The folder named by the environment variable MLP_MIXER_DATA, else ~/.cache/mlp-mixer.

    Raises UserError where there is no home folder.
    """
    return _expanded(Path(os.environ.get("MLP_MIXER_DATA") or "~/.cache/mlp-mixer"))


def _expanded(path: Path) -> Path:
    """The path with the home folder in place of ~. Raises UserError where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} begins with a home folder that does not exist: name the folder of the data with --data-dir or in "
            "MLP_MIXER_DATA, or use --dataset digits."
        ) from None


def load_dataset(name: str, data_dir: Path | None, download: Callable[[Path], None] | None) -> Dataset:
    """Loads a data set by name.

    Args:
      name: "cifar10"; "digits"; or "auto", which is CIFAR-10 where `data_dir` holds it or `download`
        brings it, else the digits, with `notice` set.
      data_dir: the folder that holds CIFAR-10 or receives it; `default_data_dir()` if None.
      download: puts CIFAR-10 into a folder, or raises DownloadError; called only where the folder holds none.
        None: never download.

    Raises:
      UserError: the name is unknown; "cifar10" is neither there nor can be downloaded; or CIFAR-10 is there and
        damaged, with "auto", too.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}.")
    if name == "digits":
        return _digits()

    data_dir = default_data_dir() if data_dir is None else _expanded(Path(data_dir))
    source = find_cifar10(data_dir)
    reason = "downloading is switched off"
    if source is None and download is not None:
        failure = None
        try:
            download(data_dir)
        except DownloadError as error:
            failure = error
        source = find_cifar10(data_dir)  # even after a failure: another run may have brought it meanwhile
        if source is None and failure is not None:
            if name == "cifar10":
                raise failure
            reason = failure.reason
    if source is not None:
        (train_images, train_labels), (test_images, test_labels) = source.read()
        return Dataset(
            "cifar10",
            f"CIFAR-10, {source.description}",
            train_images,
            train_labels,
            test_images,
            test_labels,
            CLASS_NAMES,
        )
    if name == "cifar10":
        raise UserError(
            f"there is no CIFAR-10 in {data_dir} ({reason}): put it there as Parquet files, "
            "cifar-10-python.tar.gz or a prepared TFDS data set, or use --dataset digits."
        )
    return _digits(
        f"CIFAR-10 is neither in {data_dir} nor can it be downloaded ({reason}): using scikit-learn's "
        "handwritten digits instead; figures are not comparable with CIFAR-10."
    )


def _digits(notice: str | None = None) -> Dataset:
    (train_images, train_labels), (test_images, test_labels) = load_digits()
    return Dataset(
        "digits",
        "scikit-learn's bundled handwritten digits, 8x8 upscaled to 32x32",
        train_images,
        train_labels,
        test_images,
        test_labels,
        tuple(str(digit) for digit in range(10)),
        notice,
    )
