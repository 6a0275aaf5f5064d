"""CIFAR-10 from whichever format a folder holds.

These are looked for in this order, and the first that is there is read:
  1. Parquet files as Hugging Face has them: train-*.parquet and test-*.parquet
  2. cifar-10-batches-py/, the original archive unpacked (torchvision leaves this)
  3. cifar-10-python.tar.gz, the original archive itself
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
from mixer_common.data.tfds import read_tfds
from mixer_common.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Source:
    """A folder or a file that holds CIFAR-10; `read` returns its training and its test split."""

    description: str
    read: Callable[[], tuple[Split, Split]]


def find_cifar10(data_dir: Path) -> Source | None:
    """The most preferred source of CIFAR-10 in `data_dir` or `data_dir/cifar10`; None if there is none.

    Parquet files may also lie in the sub-folders plain_text and data, as in a copy of the Hugging Face
    repository.

    Raises:
      UserError: `data_dir` is a file or may not be read, or a split or a shard of Parquet files is missing.
    """
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(f"{data_dir} is a file: name the folder that holds CIFAR-10 (--data-dir).")
    folders = (data_dir, data_dir / "cifar10")
    for folder in (*folders, *(f / sub for f in folders for sub in ("plain_text", "data"))):
        if any(re.fullmatch(r"(train|test)-.*\.parquet", name) for name in _names(folder)):
            train, test = (_shards(folder, split) for split in ("train", "test"))
            return Source(f"Parquet files in {folder}", partial(read_parquet, train, test))
    for folder in folders:
        batches = folder / "cifar-10-batches-py"
        if batches.name in _names(folder):
            return Source(f"batches folder {batches}", partial(read_batches_folder, batches))
    for folder in folders:
        archive = folder / "cifar-10-python.tar.gz"
        if archive.name in _names(folder):
            return Source(f"archive {archive}", partial(read_archive, archive))
    for folder in folders:
        versions = [name for name in _names(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
        if versions:
            newest = folder / max(versions, key=lambda version: [int(part) for part in version.split(".")])
            return Source(f"TFDS data set {newest}", partial(read_tfds, newest))
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
    names = [name for name in _names(folder) if re.fullmatch(rf"{split}-.*\.parquet", name)]
    if not names:
        raise UserError(f"{folder} holds Parquet files but no {split}-*.parquet: add the {split} split.")
    # Hugging Face numbers its shards: train-00000-of-00002.parquet
    matches = [re.fullmatch(rf"{split}-(\d+)-of-(\d+).*\.parquet", name) for name in names]
    numbers = [match for match in matches if match]
    if len(numbers) == len(names):
        expected = int(numbers[0][2])
        present = [int(number[1]) for number in numbers]
        if present != list(range(expected)):
            raise UserError(
                f"{folder} should hold the {expected} shards that {names[0]} promises, but holds "
                f"{', '.join(names)}: add the missing ones or remove those of another set."
            )
    return [folder / name for name in names]
