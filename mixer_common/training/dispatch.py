"""Training steps in dispatches: how many steps each one takes, and the seconds that they need."""

import time
from collections.abc import Iterator

import numpy as np

from mixer_common.interface import Trainer
from mixer_common.training.signals import StopSignal

# A signal is obeyed between two dispatches. Shorter ones would cost time: in JAX, making and giving back the buffers
# of a dispatch takes longer than a small model's step.
SECONDS_PER_DISPATCH = 2.0
_LARGEST_GROWTH = 10


class DispatchClock:
    """Measures the dispatches of one epoch, and sizes the next one to take about SECONDS_PER_DISPATCH."""

    def __init__(self, is_compiled: bool):
        """is_compiled: whether this process has run a step before. If not, the first dispatch compiles the step, and
        its time says nothing about the next ones."""
        self.compile_seconds = 0.0  # of the dispatch that compiled
        self.train_seconds = 0.0  # of all others
        self.timed_steps = 0  # number of steps that train_seconds covers
        self._is_compiled = is_compiled
        self._steps_per_second = 0.0  # what the next dispatch is sized for

    def next_size(self, remaining: int) -> int:
        """How many steps the next dispatch takes: 1 to `remaining`."""
        return min(remaining, max(1, round(self._steps_per_second * SECONDS_PER_DISPATCH)))

    def add(self, steps: int, seconds: float) -> None:
        """Counts a dispatch of `steps` steps that took `seconds`."""
        if not self._is_compiled:
            self._is_compiled = True
            self.compile_seconds += seconds
            return
        self.train_seconds += seconds
        self.timed_steps += steps
        # One lucky measurement of a short dispatch must not make the next one last for minutes.
        self._steps_per_second = min(steps / seconds, _LARGEST_GROWTH * max(self._steps_per_second, 1))


def dispatch_steps(
    trainer: Trainer, first: int, last: int, clock: DispatchClock, stop: StopSignal
) -> Iterator[np.ndarray]:
    """Trains steps `first` to `last` - 1 of the epoch that the trainer has begun, or until a signal arrives.

    Yields the training losses of each dispatch, (steps,), in order; `clock` counts them.
    """
    while first < last and not stop.number:
        steps = clock.next_size(last - first)
        start = time.perf_counter()
        losses = trainer.train(first, first + steps)
        clock.add(steps, time.perf_counter() - start)
        first += steps
        yield losses
