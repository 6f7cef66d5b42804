"""What a test tells the API server to do wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next requests that fit.

    Attributes:
        path: Part of the paths that it is for.
        method: '' is every one.
        status: That is answered; 0 drops the connection.
        times: How often.
        message: Of the Status object.
        headers: Of the answer.
        is_watch: None: any request; else only watches, or only others.
        after_lines: Lines that a stream gives before its connection drops.
        after_handling: Does what was asked before it goes wrong.
        delay_s: With one, the request is only answered late.
    """

    path: str
    method: str = ""
    status: int = 0
    times: int = 1
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    is_watch: bool | None = None
    after_lines: int | None = None
    after_handling: bool = False
    delay_s: float = 0.0


class Faults:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._coming.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._coming.clear()

    def take(self, method: str, path: str, *, is_watch: bool) -> Fault | None:
        """Return the fault of a request, and count it."""
        with self._lock:
            for fault in self._coming:
                fits = fault.path in path and fault.method in ("", method)
                if fits and fault.times and fault.is_watch in (None, is_watch):
                    fault.times -= 1
                    return fault
        return None
