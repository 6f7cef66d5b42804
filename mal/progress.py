"""Progress of long work: a bar on a terminal, plain lines with rate and time left in a log."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mal.distributed.workers import Worker

log = logging.getLogger(__name__)

LINE_INTERVAL_S = 15.0
Item = TypeVar("Item")


class Progress:
    """Shows the progress of a task, of which `done` units may be done before."""

    def __init__(self, name: str, total: int, *, unit: str, done: int = 0) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = self._done_before = done
        self._started_s = self._last_line_s = time.monotonic()
        has_bar = sys.stderr.isatty() and Worker.current().is_rank0
        self._bar = _TerminalBar(name, total, done) if has_bar else None

    def update_to(self, done: int) -> None:
        """Set the number of finished units."""
        self.done = done
        if self._bar is not None:
            self._bar.update_to(done)
        elif time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            log.info("%s", self.line())

    def line(self) -> str:
        """Return the state as one line."""
        rate = (self.done - self._done_before) / max(time.monotonic() - self._started_s, 1e-9)
        left_s = (self.total - self.done) / rate if rate > 0 else float("inf")
        left = f"{left_s:.0f} s left" if left_s != float("inf") else "starting"
        return f"{self.name} {self.done}/{self.total} {self.unit}, {rate:.2f}/s, {left}"

    def close(self) -> None:
        """End the bar, or write the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._done_before:
            log.info("%s", self.line())


class _TerminalBar:
    def __init__(self, name: str, total: int, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_console(),
        )
        self._task = self._progress.add_task(name, total=total, completed=done)
        self._progress.start()

    def update_to(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()


@functools.cache
def _console() -> Any:
    """Return the one console of all bars: a validation's bar is below the training's."""
    from rich.console import Console

    return Console(stderr=True)


def track(items: Iterable[Item], name: str, total: int, *, unit: str) -> Iterator[Item]:
    """Yield the items and show the progress."""
    progress = Progress(name, total, unit=unit)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update_to(done)
    finally:
        progress.close()
