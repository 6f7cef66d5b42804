"""Follows the log of a pod, across lost connections."""

from __future__ import annotations

import collections
import re
import threading
import time
from collections.abc import Callable, Iterator

from mal.cluster.api_errors import ApiError, ConnectionLost
from mal.cluster.client import ClusterClient

KEPT_LINES = 50
_RECONNECT_S = 1.0
_DRAIN_S = 10.0
_STAMP = re.compile(r"(\S{19})(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
_FRACTION_DIGITS = 9


class LogFollower:
    """Logs the lines of one pod in a thread, each line once.

    `tail_lines` is the number of existing lines to start with; 0 is all.
    """

    def __init__(
        self,
        client: ClusterClient,
        namespace: str,
        pod: str,
        container: str,
        *,
        log: Callable[[str], None],
        tail_lines: int = 0,
    ) -> None:
        self.pod = pod
        self.last_lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._client, self._namespace, self._container = client, namespace, container
        self._log = log
        self._tail_lines = tail_lines
        self._since = ""
        self._last_moment, self._num_at_last_moment = "", 0
        self._is_job_over, self._is_stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name=f"log of {pod}")
        self._thread.start()

    def finish(self) -> None:
        """Log the remaining lines of a pod that ended, and stop."""
        self._is_job_over.set()
        self._thread.join(_DRAIN_S)
        self.stop()

    def stop(self) -> None:
        """Log no more lines."""
        self._is_stopped.set()
        self._is_job_over.set()

    def _follow(self) -> None:
        """Read the log until it ends after the job ended: an earlier end may be a fault."""
        while not self._is_stopped.is_set():
            was_over = self._is_job_over.is_set()
            try:
                self._read_once()
                if was_over:
                    return
            except ConnectionLost:
                if was_over:
                    time.sleep(_RECONNECT_S)
            except ApiError as error:
                if error.status == 403:
                    self._log(f"the log of {self.pod} cannot be read: {error}")
                if was_over or error.status == 403:
                    return  # the pod is gone, or the account may not read its log
            self._is_job_over.wait(_RECONNECT_S)

    def _read_once(self) -> None:
        with self._client.follow_log(
            self._namespace,
            self.pod,
            self._container,
            since=self._since,
            tail_lines=0 if self._since else self._tail_lines,
        ) as lines:
            for text in self._unseen(lines):
                if self._is_stopped.is_set():
                    return
                self.last_lines.append(text)
                self._log(text)

    def _unseen(self, lines: Iterator[str]) -> Iterator[str]:
        """Skip the lines of an earlier connection: the server starts at a whole second."""
        seen_up_to, num_to_skip = self._last_moment, self._num_at_last_moment
        is_seen = bool(seen_up_to)
        for line in lines:
            stamp, _, text = line.partition(" ")
            moment = _comparable(stamp)
            if is_seen and moment == seen_up_to:
                num_to_skip -= 1
            is_seen = is_seen and (
                moment < seen_up_to or (moment == seen_up_to and num_to_skip >= 0)
            )
            if not is_seen:
                self._remember(moment, stamp)
                yield text

    def _remember(self, moment: str, stamp: str) -> None:
        """Remember the time of the last line, and the number of lines with this time."""
        if moment == self._last_moment:
            self._num_at_last_moment += 1
        elif moment > self._last_moment:
            self._last_moment, self._num_at_last_moment = moment, 1
            self._since = _STAMP.sub(r"\1\3", stamp)


def _comparable(stamp: str) -> str:
    """Pad the fraction of an RFC 3339 time; all lines of a node have one time zone."""
    match = _STAMP.fullmatch(stamp)
    return f"{match[1]}.{(match[2] or '').ljust(_FRACTION_DIGITS, '0')}" if match else ""
