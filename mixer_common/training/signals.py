"""What Ctrl-C, a scheduler's SIGTERM and a closed terminal do to a training: they stop it after the steps under way."""

import signal
from types import FrameType, TracebackType


class StopSignal:
    """A context in which SIGINT, SIGTERM and SIGHUP ask for a stop instead of ending the process.

    A SIGHUP that the process ignores, as under nohup, stays ignored. The first signal prints a line and is remembered
    in `number`. A second one raises KeyboardInterrupt at once. Leaving the context restores the handlers that were
    there before. Only a process's main thread can use it.
    """

    def __init__(self):
        self.number = 0  # of the signal that arrived; 0: none did

    def __enter__(self) -> "StopSignal":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
            numbers.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """The name of the signal that arrived: "SIGINT", "SIGTERM" or "SIGHUP". Raises ValueError where none did."""
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
