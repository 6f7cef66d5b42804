"""The lock of a results folder: one process writes there at a time, and others learn which.

Locally it is `flock` on a file in the folder, which the kernel frees when the process ends, however
it ends. A remote folder has that lock on its staging folder, and an object with a heartbeat beside
the results. Stores differ in what they do with conditional writes (SeaweedFS before 4.18 lets all
of several through), so that the object is read back after a pause, and read again before every beat
and every upload: of two that both believed to have it, one goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.errors import StorageError
from mal.storage.objects import (
    age_of_object_s,
    delete_object,
    read_object,
    write_object,
    write_object_if,
)
from mal.storage.uris import RemoteUri

LOCK_NAME = ".mal.lock"
BEAT_S = 15.0
GONE_AFTER_S = 60.0
READ_BACK_S = 1.0
POLL_S = 2.0

_STAGING_ID_NAME = "staging-id"
_POD_VARIABLES = ("KFP_POD_NAME", "POD_NAME")

log = logging.getLogger(__name__)


def holder_facts() -> dict[str, Any]:
    """Return who this process is, for those that wait for it."""
    pod = next((os.environ[name] for name in _POD_VARIABLES if os.environ.get(name)), "")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    return {**facts, "pod": pod} if pod else facts


@contextlib.contextmanager
def holding_folder(folder: Path, uri: str) -> Iterator[bool]:
    """Hold the lock of a local folder; yields false where its file system has no locks.

    Args:
        folder: It exists.
        uri: Of the results, for the message.

    Raises:
        StorageError: Another process holds it; the message names it.
    """
    path = folder / LOCK_NAME
    descriptor = _open_locked(path, uri)
    if descriptor is None:
        yield False
        return
    is_held = True

    def close_in_child() -> None:
        # A loader process that outlives a killed parent would keep the lock.
        nonlocal is_held
        if is_held:
            is_held = False
            with contextlib.suppress(OSError):
                os.close(descriptor)

    os.register_at_fork(after_in_child=close_in_child)
    try:
        content = json.dumps(holder_facts()).encode()
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        yield True
    finally:
        is_held = False
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, uri: str) -> int | None:
    """Return the locked file; None where the file system has no locks.

    Raises:
        StorageError: Another process holds it, or the file cannot be written.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"results_dir must be a folder that can be written, got {uri} "
                f"({error.strerror}). Choose another."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise StorageError(_in_use(uri, _facts_of(content))) from None
        except OSError as error:
            os.close(descriptor)
            log.warning("%s has no file locks (%s): nothing keeps a second run out", uri, error)
            return None
        # The earlier holder may have unlinked the file between the opening and the lock.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


@dataclass(frozen=True)
class _Seen:
    """The lock object as it was read.

    Attributes:
        facts: Of its holder.
        etag: Of this state.
    """

    facts: dict[str, Any]
    etag: str

    @property
    def is_released(self) -> bool:
        """Whether its holder has ended, and could not delete it."""
        return bool(self.facts.get("is_released"))


class RemoteLock:
    """The lock object of a remote results folder.

    Use as a context manager, with the lock of the staging folder held.

    Args:
        folder: The results folder.
        staging: Its local twin's parent.
        is_alone: Whether no other process uses that one.
    """

    def __init__(self, folder: RemoteUri, staging: Path, *, is_alone: bool) -> None:
        self._is_alone = is_alone
        self._uri = folder.child(LOCK_NAME)
        self._folder = folder
        self._facts = {
            **holder_facts(),
            "token": secrets.token_hex(16),
            "staging": _staging_id(staging),
        }
        self._num_beats = 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True, name="results-lock")

    def __enter__(self) -> RemoteLock:
        """Take the lock.

        Raises:
            StorageError: Another process that is alive holds it.
        """
        while not self._try_to_take():
            pass
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the heartbeat and give the lock back."""
        self._has_ended.set()
        self._thread.join(timeout=GONE_AFTER_S)
        with contextlib.suppress(StorageError):
            seen = self._read()
            if seen is None or not self._is_mine(seen):
                return
            try:
                delete_object(self._uri)
            except StorageError:  # an account without the right to delete
                write_object(self._content(is_released=True), self._uri)

    def require_held(self) -> None:
        """Check that nobody has taken the lock over.

        Raises:
            StorageError: Somebody has: this process was taken for dead.
        """
        seen = self._read()
        if seen is not None and not self._is_mine(seen) and not seen.is_released:
            raise StorageError(
                f"Another run has taken {self._folder} over: {_name(seen.facts)}. This process "
                f"gave no sign of life for {GONE_AFTER_S:.0f} s, and writes nothing more there."
            )

    def _try_to_take(self) -> bool:
        seen = self._read()
        if seen is not None and not seen.is_released:
            seen = self._wait_for_end(seen)
        etag = seen.etag if seen else ""
        if write_object_if(self._content(), self._uri, expected_etag=etag) is None:
            time.sleep(READ_BACK_S)
            return False
        time.sleep(READ_BACK_S)
        seen = self._read()
        return seen is not None and self._is_mine(seen)

    def _wait_for_end(self, seen: _Seen) -> _Seen | None:
        """Return the lock object of a holder that is gone; None where it has deleted it.

        Raises:
            StorageError: The holder is alive.
        """
        if self._is_alone and seen.facts.get("staging") == self._facts["staging"]:
            return seen  # it had the staging folder's lock, which this process has now
        age_s = age_of_object_s(self._uri) or 0.0
        first, end_s = seen, time.monotonic() + GONE_AFTER_S - age_s
        if age_s < GONE_AFTER_S:
            log.info(
                "%s is held by %s; its last sign of life is %.0f s old: waiting until it gives "
                "another one, or none for %.0f s",
                self._folder, _name(seen.facts), age_s, GONE_AFTER_S,
            )  # fmt: skip
        while time.monotonic() < end_s:
            time.sleep(POLL_S)
            now = self._read()
            if now is None or now.is_released:
                return now
            if (now.facts.get("token"), now.facts.get("beat")) != (
                first.facts.get("token"), first.facts.get("beat"),
            ):  # fmt: skip
                raise StorageError(_in_use(str(self._folder), now.facts))
            seen = now
        log.warning(
            "%s was held by %s, which gave no sign of life for %.0f s: taking it over",
            self._folder, _name(seen.facts), GONE_AFTER_S,
        )  # fmt: skip
        return seen

    def _beat_on(self) -> None:
        """Write a beat now and then, as long as nobody else has the lock."""
        while not self._has_ended.wait(BEAT_S):
            try:
                seen = self._read()
                if seen is not None and not self._is_mine(seen):
                    return
                self._num_beats += 1
                write_object(self._content(), self._uri)
            except StorageError as error:
                log.warning("the lock of %s could not be renewed: %s", self._folder, error)

    def _content(self, *, is_released: bool = False) -> bytes:
        beat_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        facts = {**self._facts, "beat": self._num_beats, "beat_at": beat_at}
        if is_released:
            facts["is_released"] = True
        return json.dumps(facts).encode()

    def _read(self) -> _Seen | None:
        found = read_object(self._uri)
        return _Seen(_facts_of(found[0]), found[1]) if found else None

    def _is_mine(self, seen: _Seen) -> bool:
        return bool(seen.facts.get("token") == self._facts["token"])


def _staging_id(staging: Path) -> str:
    """Return what names this folder of this disk, and no other machine's of the same path."""
    path = staging / _STAGING_ID_NAME
    with contextlib.suppress(OSError):
        if known := path.read_text(encoding="utf-8").strip():
            return known
    staging_id = secrets.token_hex(16)
    path.write_text(staging_id, encoding="utf-8")
    return staging_id


def _facts_of(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        facts = json.loads(content)
        if isinstance(facts, dict):
            return facts
    return {}


def _name(facts: dict[str, Any]) -> str:
    pod = f" (pod {facts['pod']})" if facts.get("pod") else ""
    return (
        f"process {facts.get('pid', 'unknown')} on {facts.get('host', 'an unknown host')}{pod} "
        f"since {facts.get('started', 'an unknown time')}"
    )


def _in_use(uri: str, facts: dict[str, Any]) -> str:
    return (
        f"results_dir must not be in use, got {uri}, which is held by {_name(facts)}. Wait for its "
        "end, or choose another results_dir."
    )
