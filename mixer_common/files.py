"""TODO docstring."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from mixer_common.errors import UserError


def replace_folder(new: Path, folder: Path) -> None:
    """Gives the complete folder `new` the name of `folder`, whose old content goes when that is done."""
    old = hidden_sibling(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or holds something else."""
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


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and waits until it lies on the disk."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not name it
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    new = hidden_sibling(path, "new")
    try:
        write_file(new, data)
        new.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        new.unlink(missing_ok=True)


def hidden_sibling(path: Path, suffix: str) -> Path:
    """A hidden name for what is not complete yet, or about to go."""
    return path.with_name(f".{path.name}.{suffix}")


def make_folder(path: Path, overwrite: bool, kind: str, marker: str, other: str = "") -> None:
    """Makes the folder, empty. Raises UserError where something lies there, unless it is to be overwritten and holds
    the file `marker`, by which a `kind` is known. other: what else could be done with it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not overwrite:
            raise UserError(f"{path} exists already: {other}replace it with --overwrite, or choose another --out.")
        if not (path / marker).is_file():
            raise UserError(f"{path} is no {kind}, so --overwrite does not delete it: choose another --out.")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
