"""The place of a new run: whether it is free, and the removal of a run that is to be overwritten."""

import fnmatch
from pathlib import Path

from mixer_common.errors import UserError
from mixer_common.runs import history, lock
from mixer_common.runs.checkpoint import RunConfig

# What a run writes, as patterns of names in its folder, in its checkpoint and among its pictures; --overwrite removes
# nothing else.
_FILES = (
    "config.json",
    "metrics.jsonl",
    "step_losses.npy",
    "summary.json",
    "events.out.tfevents.*",
    lock.NAME,
    lock.OWNER,
)
_CHECKPOINT_FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "progress.json", "checksums.json")
_PICTURES = (
    "first_test_batch.png",
    "augmented_batch.png",
    "curves.png",
    "confusion_matrix.png",
    "predictions.png",
)
_CONTENT = {".": _FILES, "pictures": _PICTURES} | dict.fromkeys(
    ("checkpoint", ".checkpoint.new", ".checkpoint.old", f"{history.FOLDER}/*"), _CHECKPOINT_FILES
)
_FOLDERS = ("pictures", "checkpoint", ".checkpoint.new", ".checkpoint.old", history.FOLDER)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises UserError where something lies in the place of a new run that it may not replace."""
    if not path.exists() or (path.is_dir() and all(item.name in (lock.NAME, lock.OWNER) for item in path.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"{path} exists already: continue it with --resume, replace it with --overwrite, or choose another --out."
        )
    if not _is_run(path):
        raise UserError(f"{path} is no run, so --overwrite does not delete it: choose another --out.")


def _is_run(path: Path) -> bool:
    """Whether the folder is that of a run, or of one that was ended before it wrote its config.json."""
    if not path.is_dir():
        return False
    try:
        RunConfig.from_json(path / "config.json")
        return True
    except UserError:
        return not (path / "config.json").exists() and all(
            _is_ours(item.name, _FILES) or item.name in _FOLDERS for item in path.iterdir()
        )


def remove_run(path: Path) -> None:
    """Removes what a run wrote into its folder, but for the lock; what else lies there stays."""
    for name, patterns in _CONTENT.items():
        for folder in [path] if name == "." else sorted(path.glob(name)):
            if folder.is_symlink() and folder != path:
                folder.unlink()
            elif folder.is_dir():
                for item in folder.iterdir():
                    if item.name not in (lock.NAME, lock.OWNER) and _is_ours(item.name, patterns) and not item.is_dir():
                        item.unlink()
    for folder in [*path.glob(f"{history.FOLDER}/*"), *(path / name for name in _FOLDERS)]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _is_ours(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a run writes files of that name, or was ended while it wrote one."""
    if name.startswith(".") and name.endswith(".new"):
        name = name.removeprefix(".").removesuffix(".new")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
