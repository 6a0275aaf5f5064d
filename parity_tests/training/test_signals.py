"""SIGINT, SIGTERM and SIGHUP ask a training to stop; a second one ends it."""

import signal

import pytest

from mixer_common.training.signals import StopSignal


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129)],
)
def test_a_signal_is_remembered_and_announced(capsys, number, name, code):
    with StopSignal() as stop:
        assert stop.number == 0
        signal.raise_signal(number)
        assert (stop.number, stop.name, stop.exit_code) == (number, name, code)
    assert capsys.readouterr().out == "\nStopping after the steps under way; then a checkpoint is written.\n"


def test_a_second_signal_ends_at_once():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGTERM"


def test_the_handlers_before_return_even_after_an_error():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    inside = []

    def fail() -> None:
        with StopSignal():
            inside.extend(signal.getsignal(number) for number in numbers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not set(inside) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)
