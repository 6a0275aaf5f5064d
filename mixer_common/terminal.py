"""What a person sees of a long run: a bar in a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 15


class Display:
    """Progress in steps. Use as a context; `update` as often as you like, `line` for what is to stay."""

    def __init__(self, total: int, done: int):
        self.console = Console(highlight=False, soft_wrap=True)
        self.total, self.started, self.done = total, time.monotonic(), done
        self.last_line = self.started
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("compiling", total=total, completed=done, figures="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, what: str, step: int, loss: float, images_per_second: float, seconds_left: float) -> None:
        figures = f"loss {loss:.4f}  {images_per_second:,.0f} images/s"
        self.bar.update(self.task, description=what, completed=step, figures=figures)
        if not self.console.is_terminal and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.line(f"  step {step:,} of {self.total:,}  {figures}  {seconds_left:,.0f} s left")

    def line(self, text: str) -> None:
        self.bar.console.print(text, markup=False)
        sys.stdout.flush()
        self.last_line = time.monotonic()


class ByteDisplay:
    """Progress in bytes. Use as a context; call it with what happens, the bytes done and their total."""

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ByteDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.console.print(f"  {what} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
            self.last_line = time.monotonic()


class TurnDisplay:
    """Progress in turns. Use as a context; `begin` a stage of so many, then say what each `turn` is about to do."""

    def __init__(self):
        self.console = Console(highlight=False, soft_wrap=True)
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=0)

    def __enter__(self) -> "TurnDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def begin(self, what: str, turns: int) -> None:
        self.bar.reset(self.task, total=turns, description=what)
        self.done = 0

    def turn(self, what: str) -> None:
        self.bar.update(self.task, description=what, completed=self.done)
        self.done += 1
        if not self.console.is_terminal and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.line(f"  {what}")

    def line(self, text: str) -> None:
        self.bar.console.print(text, markup=False)
        sys.stdout.flush()
        self.last_line = time.monotonic()
