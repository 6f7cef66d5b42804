"""Uploads a results folder while the work goes on."""

from __future__ import annotations

import logging
import threading
import time

from mal.errors import StoreAwayError
from mal.storage.patience import impatient
from mal.storage.results_folder import ResultsFolder

RETRY_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


class BackgroundUpload:
    """Uploads a remote results folder in a thread, on request and at an interval.

    An absent store stops nothing: what it did not get is part of the next upload. What the store
    refuses is raised by the next request.

    Args:
        results: The folder; without an effect for a local one.
        interval_s: The longest time between two uploads.
    """

    def __init__(self, results: ResultsFolder, interval_s: float) -> None:
        self._results = results
        self._interval_s = interval_s
        self._wanted = threading.Event()
        self._is_closing = False
        self._error: Exception | None = None
        self._away_since_s = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._results.is_remote and self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="upload")
            self._thread.start()

    def request(self) -> None:
        """Ask for an upload soon.

        Raises:
            StorageError: The store refused an earlier upload, or another run has the folder.
        """
        if self._error is not None:
            raise self._error
        self._wanted.set()

    def close(self) -> None:
        """End the thread, after an upload that it is in."""
        self._is_closing = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            pause_s = RETRY_INTERVAL_S if self._away_since_s else self._interval_s
            self._wanted.wait(pause_s)
            self._wanted.clear()  # before the test: `close` sets both, in the other order
            if self._is_closing:
                return
            try:
                with impatient():
                    self._results.upload()
            except StoreAwayError as error:
                if not self._away_since_s:
                    self._away_since_s = time.monotonic()
                    log.warning("%s The work goes on, and the upload is tried again.", error)
            except Exception as error:
                self._error = error
                return
            else:
                if self._away_since_s:
                    away_s = time.monotonic() - self._away_since_s
                    log.info("%s is up to date again, after %.0f s", self._results.uri, away_s)
                self._away_since_s = 0.0
