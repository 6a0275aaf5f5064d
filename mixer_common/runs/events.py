"""TensorBoard's event files, written by tensorboardX."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def open_events(folder: Path, step: int) -> "SummaryWriter":
    """A writer of a new event file in the folder. TensorBoard hides what older files there hold from `step` on.

    tensorboardX imports torch where it is installed, for the name of a type in an annotation. In a process that has
    not imported torch itself, that would take seconds and bring PyTorch into a training in JAX, so torch is hidden
    while tensorboardX is imported; it works without. None of its modules can be imported without the one that does
    so.
    """
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own mark: importing it fails
    try:
        from tensorboardX import SummaryWriter
    finally:
        if is_hidden:
            del sys.modules["torch"]

    return SummaryWriter(str(folder), purge_step=step, write_to_disk=True)
