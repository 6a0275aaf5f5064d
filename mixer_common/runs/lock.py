"""The lock of a run's folder: one process trains it at a time."""

import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mixer_common.errors import UserError

NAME = ".lock"
OWNER = ".lock.json"  # beside it, since Windows lets nobody write to a file that is locked


def lock_run(path: Path) -> FileLock:
    """Locks the run in a folder, which exists, until the lock is released or the process ends.

    The system gives the lock back when the process ends, however it ends, so the file that stays in the folder blocks
    nobody. Raises UserError, which says whose it is, where another process holds it.
    """
    lock = FileLock(path / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{path} is being trained by {_owner(path / OWNER)}: wait for its end, stop it, or choose another --out."
        ) from None
    owner = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # it only tells others whose the lock is
        (path / OWNER).write_text(json.dumps(owner) + "\n")
    return lock


def _owner(path: Path) -> str:
    """The process that holds the lock, for people."""
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['process']} on {owner['machine']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
