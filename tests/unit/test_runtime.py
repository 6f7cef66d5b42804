"""When a signal stops a process, and when it is only remembered."""

from __future__ import annotations

import signal

import pytest

from mal import runtime
from mal.runtime import Interrupted, StopRequest


def test_a_signal_interrupts_at_once() -> None:
    with pytest.raises(Interrupted) as caught:
        StopRequest().handle(signal.SIGINT, None)
    assert caught.value.exit_code == 130


def test_a_deferred_signal_is_remembered_and_a_second_one_interrupts() -> None:
    stop = StopRequest()
    with stop.deferring():
        stop.handle(signal.SIGTERM, None)
        assert stop.agree()
        with pytest.raises(Interrupted):
            stop.handle(signal.SIGTERM, None)
    with pytest.raises(Interrupted):
        stop.raise_if_received()


def test_the_first_signal_after_another_ranks_does_not_interrupt_the_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "max_of_ranks", lambda _: signal.SIGTERM)
    stop = StopRequest()
    with stop.deferring():
        assert stop.agree()
        stop.handle(signal.SIGINT, None)
    assert stop.received == signal.SIGTERM
