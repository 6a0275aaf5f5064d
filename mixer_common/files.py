"""Files and folders that appear whole or not at all, and clear errors where one is missing, changed or in the way."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixer_common.errors import UserError

MANIFEST = "checksums.json"  # the SHA-256 of every other file in a folder, by its name


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
    """Writes a file whole or not at all: until its content lies on the disk, an older file keeps the name.

    A link stays one, and what is no file, such as /dev/stdout, is written to.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    new = hidden_sibling(path, "new")
    try:
        write_file(new, data)
        new.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_folder(new: Path, folder: Path, previous: Path | None = None) -> None:
    """Renames the complete folder `new` to `folder`; what lay there becomes `previous`, or is deleted without one.

    Between its first two renames the older content lies in hidden_sibling(folder, "old"), where a reader finds it
    after an interruption.
    """
    old = hidden_sibling(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    with suppress(OSError):  # what follows only tidies up
        if previous and old.exists():
            previous.parent.mkdir(exist_ok=True)
            shutil.rmtree(previous, ignore_errors=True)
            old.rename(previous)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder lie on the disk, where the system can do that; Windows and some network
    disks cannot."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_manifest(folder: Path, logs: Mapping[str, str]) -> None:
    """Writes the checksums of all files in a folder, and others by name, as the last of its files."""
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    write_file(folder / MANIFEST, _manifest_bytes(sums, logs))
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """What write_manifest wrote: "sha256" and "logs"; both empty where there is no manifest, as of version 0.1, or
    somebody else's.

    Raises UserError where it is damaged.
    """
    path = folder / MANIFEST
    is_checkpoint = (folder / "progress.json").exists()
    try:
        values = read_json(path)
    except UserError:
        if path.exists() and is_checkpoint:
            raise
        return {"sha256": {}, "logs": {}}
    if not is_checkpoint and values.keys() != {"sha256", "logs", "checksum"}:
        return {"sha256": {}, "logs": {}}
    parts = {name: values.get(name) for name in ("sha256", "logs")}
    if _manifest_bytes(*parts.values()) != path.read_bytes():
        raise UserError(f"{path} was changed or damaged after it was written; use another checkpoint.")
    return parts  # type: ignore[return-value]  # its bytes are those that write_manifest wrote


def check_sum(path: Path) -> None:
    """Raises UserError where a file is not the one whose checksum lies in the manifest beside it.

    Without a manifest nothing is checked.
    """
    sums = read_manifest(path.parent)["sha256"]
    if sums and path.is_file() and _sha256(path) != sums.get(path.name):
        raise UserError(
            f"{path} was changed or damaged after it was written: its checksum is not the one in "
            f"{path.with_name(MANIFEST)}; use another checkpoint, or delete {MANIFEST} if you changed it yourself."
        )


def _manifest_bytes(sums: Any, logs: Any) -> bytes:
    content = {"sha256": sums, "logs": logs}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({**content, "checksum": digest}, indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
