"""Faults that a test injects into the API server."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A fault of the next matching requests.

    Attributes:
        path: Part of a matching path.
        method: '' matches every method.
        status: HTTP status of the response; 0 drops the connection.
        times: Number of requests.
        message: Text of the Status object.
        headers: Headers of the response.
        is_watch: True matches only watches, False only other requests.
        after_lines: Lines of a stream before its connection drops.
        after_handling: Whether the request is carried out before the fault.
        delay_s: More than 0 only delays the response.
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
