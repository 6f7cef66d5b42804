"""Ends a pipeline step at a signal: the job of a cancelled step is deleted first.

Kubeflow sends SIGTERM and gives the step a second at most, so the signal handler begins with the
job. The work runs in a second thread and signals interrupt the main one: the handler never waits
for a lock that interrupted code holds, and finds an open connection.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SUBMISSION_S = 0.4
_EXIT_BASE = 128


class Cancellation:
    """Ends the process on SIGTERM and SIGINT, after it has dealt with the job."""

    def __init__(self) -> None:
        self._end_watch: Callable[[int], None] | None = None
        self._is_submitted = threading.Event()
        self._is_submitted.set()

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Make a signal inside the block wait until the launcher knows whether a job exists."""
        self._is_submitted.clear()
        try:
            yield
        finally:
            self._is_submitted.set()

    def call_first(self, end_watch: Callable[[int], None]) -> None:
        """Call this first, with the signal's number, when a signal arrives."""
        self._end_watch = end_watch

    def release(self) -> None:
        """Leave the job alone from now on."""
        self._end_watch = None

    def handle(self, signal_number: int, _frame: object) -> None:
        """Deal with the job and end the process."""
        self._is_submitted.wait(_SUBMISSION_S)
        if self._end_watch is not None:
            self._end_watch(signal_number)
        os._exit(_EXIT_BASE + signal_number)

    def run(self, work: Callable[[], _T]) -> _T:
        """Do the work in a thread, and handle signals until it ends.

        Outside the main thread, which alone can handle signals, it only does the work.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        previous = {number: signal.signal(number, self.handle) for number in _SIGNALS}
        try:
            with ThreadPoolExecutor(1, "mal-launcher") as pool:
                return pool.submit(work).result()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
