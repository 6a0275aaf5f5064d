"""CIFAR-10 from whichever format a folder holds.

These are looked for in this order, and the first that is there is read:
  1. Parquet files as Hugging Face has them: train-*.parquet and test-*.parquet, or train/*.parquet and test/*.parquet
  2. cifar-10-batches-py/, the original archive unpacked (torchvision leaves this)
  3. cifar-10-python.tar.gz, the original archive itself, also as .tgz or .tar
  4. <version>/, a data set prepared by TFDS (TensorFlow Datasets), such as cifar10/3.0.2/
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mixer_common.data.decode import Split
from mixer_common.data.parquet import read_parquet
from mixer_common.data.python_batches import read_archive, read_batches_folder
from mixer_common.data.tfds import is_array_record, read_tfds
from mixer_common.errors import UserError

_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-python.tgz", "cifar-10-python.tar")
_VERSION = r"\d+\.\d+\.\d+"
_UNREAD = {
    "cifar-10-batches-bin": "the binary form",
    "cifar-10-binary.tar.gz": "the binary form",
    "data_batch_1.bin": "the binary form",
    "cifar-10-batches-mat": "the Matlab form",
    "cifar-10-matlab.tar.gz": "the Matlab form",
    "trainLabels.csv": "Kaggle's form",
    "train.7z": "Kaggle's form",
}


@dataclass(frozen=True)
class Source:
    """A folder or a file that holds CIFAR-10; `read` returns its training and its test split."""

    description: str
    read: Callable[[], tuple[Split, Split]]


def find_cifar10(data_dir: Path) -> Source | None:
    """The most preferred source of CIFAR-10 in `data_dir` or `data_dir/cifar10`; None if there is none.

    Parquet files may also lie in the sub-folders plain_text and data, as in a copy of the Hugging Face
    repository. `data_dir` may itself be cifar-10-batches-py or the folder of a version of TFDS.

    Raises:
      UserError: `data_dir` is a file or may not be read, a split or a shard of Parquet files is missing, or CIFAR-10 is
        there in a form that is not read.
    """
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"{data_dir} is a file: name the folder that holds CIFAR-10 (--data-dir).")
    folders = (data_dir, data_dir / "cifar10")
    for folder in (*folders, *(f / sub for f in folders for sub in ("plain_text", "data"))):
        if any(re.fullmatch(r"(train|test)(-.*)?\.parquet", name) for name in _names(folder)):
            train, test = (_shards(folder, split) for split in ("train", "test"))
            return Source(f"Parquet files in {folder}", partial(read_parquet, train, test))
        train, test = (sorted((folder / split).glob("*.parquet")) for split in ("train", "test"))
        if train and test:
            return Source(f"Parquet files in {folder}", partial(read_parquet, train, test))
    for folder in folders:
        batches = folder if "data_batch_1" in _names(folder) else folder / "cifar-10-batches-py"
        if batches.is_dir():
            return Source(f"batches folder {batches}", partial(read_batches_folder, batches))
    for archive in (folder / name for folder in folders for name in _ARCHIVES):
        if archive.name in _names(archive.parent):
            return Source(f"archive {archive}", partial(read_archive, archive))
    for folder in folders:
        if re.fullmatch(_VERSION, folder.name) and "dataset_info.json" in _names(folder):
            return Source(f"TFDS data set {folder}", partial(read_tfds, folder))
        versions = [name for name in _names(folder) if re.fullmatch(_VERSION, name)]
        versions.sort(key=lambda version: [int(part) for part in version.split(".")], reverse=True)
        if versions:
            readable = next((name for name in versions if is_array_record(folder / name)), versions[0])
            return Source(f"TFDS data set {folder / readable}", partial(read_tfds, folder / readable))
    for folder in folders:
        for name, form in _UNREAD.items():
            if name in _names(folder):
                raise UserError(
                    f"{folder} holds {name}, {form} of CIFAR-10, which is not read: put cifar-10-python.tar.gz or "
                    "Hugging Face's Parquet files there."
                )
    return None


def _names(folder: Path) -> list[str]:
    """The names inside a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise UserError(f"the folder {folder} may not be read: check its permissions.") from None


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of one split in order. Raises UserError unless all of them are there."""
    names = [name for name in _names(folder) if re.fullmatch(rf"{split}(-.*)?\.parquet", name)]
    if not names:
        raise UserError(f"{folder} holds Parquet files but no {split}-*.parquet: add the {split} split.")
    # Hugging Face numbers its shards: train-00000-of-00002.parquet
    matches = [re.fullmatch(rf"{split}-(\d+)-of-(\d+).*\.parquet", name) for name in names]
    numbers = [match for match in matches if match]
    if numbers and len(numbers) < len(names):
        stray = next(name for name, match in zip(names, matches, strict=True) if not match)
        raise UserError(
            f"{folder} holds {stray} beside the numbered {numbers[0][0]}: remove it; else they are trained on twice."
        )
    if len(numbers) == len(names):
        expected = int(numbers[0][2])
        present = [int(number[1]) for number in numbers]
        if present != list(range(expected)):
            raise UserError(
                f"{folder} should hold the {expected} shards that {names[0]} promises, but holds "
                f"{', '.join(names)}: add the missing ones or remove those of another set."
            )
    return [folder / name for name in names]
