"""TensorBoard's event files, written by tensorboardX's writer of events without its thread.

The thread of tensorboardX's SummaryWriter dies when the disk is full, and what it should write then waits for ever. So
events are written here, at once, and a failure is a warning that stops nothing but them.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class Events:
    """A new event file in a folder. TensorBoard hides what older files there hold from `step` on."""

    def __init__(self, folder: Path, step: int):
        writer_class, self._event, self._summary = _tensorboard()
        self._folder, self._writer = folder, None
        suffix = f".{os.getpid()}"  # the rest of the name tells the second and the machine only
        self._writer: EventsWriter | None = self._try(lambda: writer_class(str(folder / "events"), suffix))
        self._write(lambda: self._event(step=step, session_log={"status": 1}))  # 1: SessionLog.START

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Adds a figure to the curve `tag`."""
        self._write(lambda: self._event(step=step, summary=self._summary(tag, value)))

    def flush(self) -> None:
        """Waits until everything so far lies on the disk."""
        if self._writer:
            self._try(self._writer.flush)

    def close(self) -> None:
        if self._writer:
            self._try(self._writer.close)
            self._writer = None

    def _write(self, event: Callable[[], Any]) -> None:
        if writer := self._writer:
            message = event()
            message.wall_time = time.time()
            self._try(lambda: writer.write_event(message))

    def _try(self, action: Callable[[], Any]) -> Any:
        """The result of an action; None where the file system refuses it, and then no more events are written."""
        try:
            return action()
        except OSError as error:
            if self._writer:
                with suppress(OSError):  # what it holds back cannot be written, either
                    self._writer.close()
            self._writer = None
            print(
                f"warning: TensorBoard's events in {self._folder} cannot be written ({error.strerror}); the training "
                "goes on without them.",
                file=sys.stderr,
            )
            return None


def _tensorboard() -> tuple[type["EventsWriter"], type, Callable[[str, float], Any]]:
    """tensorboardX's writer of events, its class of an event, and its function from a tag and a value to a summary.

    tensorboardX imports torch where it is installed, for the name of a type in an annotation. In a process that has
    not imported torch itself, that would take seconds and bring PyTorch into a training in JAX, so torch is hidden
    while tensorboardX is imported; it works without. None of its modules can be imported without the one that does
    so.
    """
    is_hidden = "torch" not in sys.modules
    if is_hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own mark: importing it fails
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
        from tensorboardX.summary import scalar
    finally:
        if is_hidden:
            del sys.modules["torch"]

    return EventsWriter, Event, scalar
