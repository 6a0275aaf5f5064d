"""How many steps a dispatch takes, and which seconds count as training."""

import signal

import numpy as np
import pytest

from mixer_common.training import dispatch
from mixer_common.training.dispatch import DispatchClock, dispatch_steps
from mixer_common.training.signals import StopSignal


def test_the_first_dispatch_of_a_process_compiles_and_is_no_measurement():
    clock = DispatchClock(is_compiled=False)
    assert clock.next_size(100) == 1
    clock.add(1, 30.0)
    assert (clock.compile_seconds, clock.train_seconds, clock.timed_steps) == (30.0, 0.0, 0)
    assert clock.next_size(100) == 1
    clock.add(1, 0.5)
    assert (clock.compile_seconds, clock.train_seconds, clock.timed_steps) == (30.0, 0.5, 1)


def test_a_dispatch_lasts_two_seconds_and_ends_with_the_epoch():
    assert dispatch.SECONDS_PER_DISPATCH == 2
    clock = DispatchClock(is_compiled=True)
    clock.add(1, 0.25)  # 4 steps a second
    assert clock.next_size(100) == 8
    assert clock.next_size(3) == 3
    clock.add(8, 80.0)  # ten seconds a step: one step is the least
    assert clock.next_size(100) == 1
    assert (clock.compile_seconds, clock.train_seconds, clock.timed_steps) == (0.0, 80.25, 9)


def test_dispatches_grow_tenfold_at_most():
    clock = DispatchClock(is_compiled=True)
    sizes = []
    for _ in range(4):
        sizes.append(clock.next_size(10**9))
        clock.add(sizes[-1], sizes[-1] * 1e-6)
    assert sizes == [1, 20, 200, 2000]


class Steps:
    """A trainer whose losses are the steps' numbers."""

    def __init__(self, signal_in: int | None = None):
        self.calls, self.signal_in = [], signal_in

    def train(self, first: int, last: int) -> np.ndarray:
        self.calls.append((first, last))
        if self.signal_in is not None and first <= self.signal_in < last:
            signal.raise_signal(signal.SIGTERM)
        return np.arange(first, last, dtype=np.float32)


def test_dispatches_cover_the_steps_in_order():
    trainer, clock = Steps(), DispatchClock(is_compiled=False)
    losses = list(dispatch_steps(trainer, 7, 400, clock, StopSignal()))
    np.testing.assert_array_equal(np.concatenate(losses), np.arange(7, 400))
    assert [len(part) for part in losses] == [last - first for first, last in trainer.calls]
    assert trainer.calls[:2] == [(7, 8), (8, 9)]  # one compiles, one is measured
    assert clock.timed_steps == 392
    assert clock.compile_seconds > 0
    assert clock.train_seconds > 0


@pytest.mark.parametrize("step", [0, 1, 30])
def test_a_signal_ends_the_steps_after_the_dispatch_it_arrived_in(step):
    trainer = Steps(signal_in=step)
    with StopSignal() as stop:
        losses = np.concatenate(list(dispatch_steps(trainer, 0, 10**6, DispatchClock(is_compiled=True), stop)))
    first, last = trainer.calls[-1]
    assert first <= step < last == len(losses) < 10**6


def test_after_a_signal_no_step_is_begun():
    trainer = Steps()
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert list(dispatch_steps(trainer, 0, 5, DispatchClock(is_compiled=True), stop)) == []
    assert trainer.calls == []
