"""Container logs with the time of each line, as the kubelet gives them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime


class PodLog:
    """Grows while the container runs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[tuple[str, str]] = []
        self._is_complete = False

    def write(self, text: str, time: str = "") -> None:
        with self._changed:
            self._lines.append((time or _now(), text))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def read(
        self, *, since: str = "", tail: int | None = None, follow: bool = False
    ) -> Iterator[tuple[str, str]]:
        """Yield (time, text); `since` counts whole seconds."""
        start = 0
        if tail is not None:
            with self._changed:
                start = max(0, len(self._lines) - tail)
        while True:
            with self._changed:
                if follow and not self._is_complete and start >= len(self._lines):
                    self._changed.wait(1.0)
                lines, is_complete = self._lines[start:], self._is_complete
            yield from (line for line in lines if line[0][:19] >= since[:19])
            start += len(lines)
            if not follow or (is_complete and not lines):
                return


def _now() -> str:
    """Return an RFC 3339 time whose fraction has no zeros at its end, as Go writes it."""
    moment = datetime.now(UTC)
    fraction = f"{moment.microsecond:06d}".rstrip("0")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + "Z"
