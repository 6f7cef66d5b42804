from __future__ import annotations

import io
import logging
import sys

import pytest

from mal import progress
from mal.progress import Progress, track


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_tells_rate_and_time_left(clock: Clock) -> None:
    bar = Progress("train", 100, unit="steps")
    assert bar.line() == "train 0/100 steps, 0.00/s, starting"
    clock.now_s += 10
    bar.update_to(20)
    assert bar.line() == "train 20/100 steps, 2.00/s, 40 s left"


def test_what_was_done_before_does_not_count_for_the_rate(clock: Clock) -> None:
    bar = Progress("train", 100, unit="steps", done=50)
    clock.now_s += 10
    bar.update_to(60)
    assert bar.line() == "train 60/100 steps, 1.00/s, 40 s left"


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    for _ in track(range(10), "cut", 10, unit="crops"):
        clock.now_s += 5
    assert told(caplog) == [
        "cut 3/10 crops, 0.20/s, 35 s left",
        "cut 6/10 crops, 0.20/s, 20 s left",
        "cut 9/10 crops, 0.20/s, 5 s left",
        "cut 10/10 crops, 0.20/s, 0 s left",
    ]


def test_short_work_is_one_line_and_no_work_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mal")
    assert list(track([1, 2], "cut", 2, unit="crops")) == [1, 2]
    assert list(track([], "cut", 0, unit="crops")) == []
    assert len(told(caplog)) == 1


def test_a_failure_still_says_how_far_it_came(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mal")

    def fail_at_third() -> None:
        for item in track(range(9), "cut", 9, unit="crops"):
            if item == 2:
                raise ValueError("broken crop")

    with pytest.raises(ValueError, match="broken crop"):
        fail_at_third()
    assert told(caplog)[0].startswith("cut 2/9 crops")


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO, "mal")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track("ab", "cut", 2, unit="crops")) == ["a", "b"]
    assert isinstance(sys.stderr, Terminal)
    assert "2/2" in sys.stderr.getvalue()
    assert told(caplog) == []
