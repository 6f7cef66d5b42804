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
    another_ranks = 2 * signal.SIGTERM  # the lowest bit is "something is due"
    monkeypatch.setattr(runtime, "max_of_ranks", lambda own: max(own, another_ranks))
    stop = StopRequest()
    with stop.deferring():
        assert stop.agree()
        stop.handle(signal.SIGINT, None)
    assert stop.received == signal.SIGTERM


def test_one_operation_shares_a_signal_and_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = [0]
    monkeypatch.setattr(runtime, "max_of_ranks", lambda own: max(own, highest[0]))
    stop = StopRequest()
    assert stop.agree_with(is_due=False) == (False, False)
    assert stop.agree_with(is_due=True) == (False, True)
    highest[0] = 1
    assert stop.agree_with(is_due=False) == (False, True)
    highest[0] = 2 * signal.SIGTERM
    assert stop.agree_with(is_due=True)[0]
    assert stop.received == signal.SIGTERM


def test_the_last_upload_of_an_action_is_not_interrupted_by_a_first_signal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with runtime.handling_stop_signals():
        with runtime.finishing("still uploading\n"):
            signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == "still uploading\n"
        with pytest.raises(runtime.Interrupted), runtime.finishing("still uploading\n"):
            signal.raise_signal(signal.SIGTERM)
    with runtime.finishing(""):
        pass
