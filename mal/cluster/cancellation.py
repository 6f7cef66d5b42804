"""A pipeline step that is cancelled takes its job along.

Kubeflow sends SIGTERM and leaves a second at most, so that deleting the job is the first thing
that the signal does. The work runs in a thread beside the main one, which signals interrupt: the
handler never waits for a lock that the interrupted code holds, and finds a connection open.
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
    """Ends the process on SIGTERM and SIGINT, after deleting what it watches over."""

    def __init__(self) -> None:
        self._delete_job: Callable[[], None] | None = None
        self._is_settled = threading.Event()
        self._is_settled.set()

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Let a signal inside the block wait until it is known whether there is a job."""
        self._is_settled.clear()
        try:
            yield
        finally:
            self._is_settled.set()

    def watch_over(self, delete_job: Callable[[], None]) -> None:
        """Call this first when a signal comes."""
        self._delete_job = delete_job

    def release(self) -> None:
        """Leave the job alone from now on."""
        self._delete_job = None

    def handle(self, signal_number: int, _frame: object) -> None:
        """Delete the job and end the process."""
        self._is_settled.wait(_SUBMISSION_S)
        if self._delete_job is not None:
            self._delete_job()
        os._exit(_EXIT_BASE + signal_number)

    def run(self, work: Callable[[], _T]) -> _T:
        """Do the work in a thread, with signals handled while it goes on.

        Called in another thread than the main one, it does the work there, without signals.
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
