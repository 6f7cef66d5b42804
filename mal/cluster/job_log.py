"""The log of rank 0's pod, a line at a time, through lost connections."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator

from mal.cluster.client import ClusterClient
from mal.cluster.refusals import ApiRefusal, ConnectionLost

KEPT_LINES = 50
_RECONNECT_S = 1.0
_DRAIN_S = 10.0
_TO_THE_SECOND = len("2026-01-01T00:00:00")
_FRACTION_DIGITS = 9


class LogFollower:
    """Tells the log of one pod in a thread of its own, each line once.

    Args:
        client: Of the cluster.
        namespace: Of the pod.
        pod: Its name.
        container: Of the pod.
        tell: Takes a line.
        tail_lines: Where to start in a log that is there already; 0 is its beginning.
    """

    def __init__(
        self,
        client: ClusterClient,
        namespace: str,
        pod: str,
        container: str,
        *,
        tell: Callable[[str], None],
        tail_lines: int = 0,
    ) -> None:
        self.pod = pod
        self.last_lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._client, self._namespace, self._container = client, namespace, container
        self._tell = tell
        self._tail_lines = tail_lines
        self._last_time, self._num_at_last_time = "", 0
        self._is_job_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name=f"log of {pod}")
        self._thread.start()

    def finish(self) -> None:
        """Tell the rest of an ended pod's log, and stop."""
        self._is_job_over.set()
        self._thread.join(_DRAIN_S)

    def _follow(self) -> None:
        """Open the log until its end was read after the job's: an earlier end may be a fault."""
        while True:
            was_over = self._is_job_over.is_set()
            try:
                self._read_once()
                if was_over:
                    return
            except ConnectionLost:
                pass
            except ApiRefusal as refusal:
                if refusal.status == 403:
                    self._tell(f"the log of {self.pod} cannot be read: {refusal}")
                    return
                if was_over:
                    return  # the pod is gone
            self._is_job_over.wait(_RECONNECT_S)

    def _read_once(self) -> None:
        since = f"{self._last_time[:_TO_THE_SECOND]}Z" if self._last_time else ""
        tail_lines = 0 if since else self._tail_lines
        with self._client.follow_log(
            self._namespace, self.pod, self._container, since=since, tail_lines=tail_lines
        ) as lines:
            for time, text in self._unseen(lines):
                if time == self._last_time:
                    self._num_at_last_time += 1
                else:
                    self._last_time, self._num_at_last_time = time, 1
                self.last_lines.append(text)
                self._tell(text)

    def _unseen(self, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
        """Leave out what an earlier connection gave: the server starts at a whole second."""
        last_time, num_to_skip = self._last_time, self._num_at_last_time
        for line in lines:
            stamp, _, text = line.partition(" ")
            time = _comparable(stamp)
            if time < last_time:
                continue
            if time == last_time and num_to_skip:
                num_to_skip -= 1
                continue
            yield time, text


def _comparable(stamp: str) -> str:
    """Pad the fraction of an RFC 3339 time, whose zeros at the end are left out."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction.ljust(_FRACTION_DIGITS, '0')}"
