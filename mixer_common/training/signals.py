"""What Ctrl-C and a scheduler's SIGTERM do to a training: they stop it after the steps under way."""

import signal
from types import FrameType, TracebackType


class StopSignal:
    """A context in which SIGINT and SIGTERM ask for a stop instead of ending the process.

    The first signal prints a line and is remembered in `number`. A second one raises KeyboardInterrupt at once. Leaving
    the context restores the handlers that were there before. Only a process's main thread can use it.
    """

    def __init__(self):
        self.number = 0  # of the signal that arrived; 0: none did

    def __enter__(self) -> "StopSignal":
        self._handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The name of the signal that arrived: "SIGINT" or "SIGTERM". Raises ValueError where none did."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """The code that a shell expects of a process that the signal ended."""
        return 128 + self.number

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        print("\nStopping after the steps under way; then a checkpoint is written.", flush=True)
