"""Files and folders that appear whole or not at all, and clear errors where one is missing or in the way."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from mixer_common.errors import UserError


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and waits until its content lies on the disk. Raises OSError with the path in it."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not name it
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: until its content lies on the disk, an older file keeps the name."""
    new = hidden_sibling(path, "new")
    try:
        write_file(new, data)
        new.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        new.unlink(missing_ok=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Renames the complete folder `new` to `folder`, and then deletes what lay there before.

    Between its two renames the older content lies in hidden_sibling(folder, "old"), where a reader finds it after an
    interruption.
    """
    old = hidden_sibling(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def hidden_sibling(path: Path, suffix: str) -> Path:
    """The path `.NAME.SUFFIX` in the same folder, for what is not complete yet or about to be deleted."""
    return path.with_name(f".{path.name}.{suffix}")


def make_folder(path: Path, overwrite: bool, kind: str, marker: str, advice: str = "") -> None:
    """Makes an empty folder.

    What lies there is deleted with `overwrite`, if it is a `kind` of folder, such as a run: one that holds the file
    `marker`. Else it raises UserError; `advice` tells, before the usual advice, what else could be done.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not overwrite:
            raise UserError(f"{path} exists already: {advice}replace it with --overwrite, or choose another --out.")
        if not (path / marker).is_file():
            raise UserError(f"{path} is no {kind}, so --overwrite does not delete it: choose another --out.")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where the file is missing or holds something else."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is missing: {path.parent} is not a run or checkpoint of this project; "
            "name the folder that a training script wrote."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): it was cut short or changed; use another copy.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object: use another copy.")
    return values
