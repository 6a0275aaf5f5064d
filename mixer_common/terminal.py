"""The progress of a long piece of work: a bar in a terminal; elsewhere, now and then a line."""

import io
import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 15


class _ProgressDisplay:
    """A bar with the given columns between the description and the time that remains. Use it as a context."""

    def __init__(self, *columns: ProgressColumn, transient: bool = False):
        """transient: the bar disappears at the end."""
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=transient,
        )
        self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self.console.print(text, markup=False)
        sys.stdout.flush()
        self.last_line = time.monotonic()

    def _occasional_line(self, text: str) -> None:
        """Prints a line where there is no bar, at most one in SECONDS_BETWEEN_LINES."""
        if not self.console.is_terminal and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.line(text)


class Display(_ProgressDisplay):
    """Progress in training steps, of which `done` out of `total` are done at the start."""

    def __init__(self, total: int, done: int):
        super().__init__(MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self.total = total
        self.task = self.bar.add_task("compiling", total=total, completed=done, figures="")

    def update(self, stage: str, step: int, loss: float, images_per_second: float, seconds_left: float) -> None:
        figures = f"loss {loss:.4f}  {images_per_second:,.0f} images/s"
        self.bar.update(self.task, description=stage, completed=step, figures=figures)
        self._occasional_line(f"  step {step:,} of {self.total:,}  {figures}  {seconds_left:,.0f} s left")


class ByteDisplay(_ProgressDisplay):
    """Progress in bytes. Call it with the activity ("reading"), the bytes done and their total."""

    def __init__(self):
        super().__init__(DownloadColumn(), TransferSpeedColumn())
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, activity: str, done: int, total: int) -> None:
        if activity not in self.tasks:
            self.tasks[activity] = self.bar.add_task(activity, total=total)
        self.bar.update(self.tasks[activity], completed=done, total=total)
        self._occasional_line(f"  {activity} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")


class TurnDisplay(_ProgressDisplay):
    """Progress in turns. `begin` a stage of so many turns, then name each `turn` when it begins."""

    def __init__(self):
        super().__init__(MofNCompleteColumn(), transient=True)
        self.task = self.bar.add_task("", total=0)
        self.begun = 0

    def begin(self, stage: str, turns: int) -> None:
        self.bar.reset(self.task, total=turns, description=stage)
        self.begun = 0

    def turn(self, description: str) -> None:
        self.bar.update(self.task, description=description, completed=self.begun)
        self.begun += 1
        self._occasional_line(f"  {description}")


class _LastingFile(io.FileIO):
    """A file descriptor to write to. What cannot be written is dropped, and nobody hears of it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def outlast_output() -> None:
    """Lets the process go on where nobody reads its stdout and stderr any more, or the disk below them is full.

    So neither a closed terminal nor `| head` ends a training. It changes nothing where they are no files, as in a
    notebook.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue
        stream.flush()
        file = io.BufferedWriter(_LastingFile(stream.fileno(), "wb", closefd=False))
        lasting = io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
        setattr(sys, name, lasting)
