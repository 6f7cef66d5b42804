"""How long requests wait for a store that is away."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mal.errors import StoreAwayError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0
REPORT_INTERVAL_S = 60.0

_T = TypeVar("_T")

log = logging.getLogger(__name__)

_of_process = [0.0]
_of_thread = threading.local()


@contextlib.contextmanager
def patient(retry_s: float) -> Iterator[None]:
    """Let every thread of the process ask an absent store again, for `retry_s` after it left."""
    before, _of_process[0] = _of_process[0], retry_s
    try:
        yield
    finally:
        _of_process[0] = before


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Let this thread fail at once where a store is away."""
    before = getattr(_of_thread, "is_impatient", False)
    _of_thread.is_impatient = True
    try:
        yield
    finally:
        _of_thread.is_impatient = before


def current_retry_s() -> float:
    """Return for how long this thread asks again; infinite for ever."""
    return 0.0 if getattr(_of_thread, "is_impatient", False) else _of_process[0]


def asking_again(ask: Callable[[], _T], store: str) -> _T:
    """Return what `ask` returns; while it raises StoreAwayError, call it again.

    Args:
        ask: Sends one request.
        store: The name of the store in messages.

    Raises:
        StoreAwayError: The store was away for longer than the thread's patience.
    """
    away_since_s, pause_s, reported_s = 0.0, FIRST_PAUSE_S, -math.inf
    while True:
        try:
            result = ask()
        except StoreAwayError as error:
            now_s = time.monotonic()
            away_since_s = away_since_s or now_s
            limit_s = current_retry_s()
            left_s = away_since_s + limit_s - now_s
            if left_s <= 0:
                if not limit_s:
                    raise
                raise StoreAwayError(
                    f"{error} It did not answer for {limit_s:.0f} s (storage.retry_s)."
                ) from error
            if now_s - reported_s >= REPORT_INTERVAL_S:
                reported_s = now_s
                until = "until it answers" if math.isinf(left_s) else f"for {left_s:.0f} s"
                log.warning("%s Trying again %s.", error, until)
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            if away_since_s:
                log.info("%s answers again, after %.0f s", store, time.monotonic() - away_since_s)
            return result
