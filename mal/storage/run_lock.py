"""The lock of a results folder: one process writes there at a time; others get an error naming it.

A local folder has `flock` on a file in it, which the kernel frees when the process ends. A remote
folder has that lock on its staging folder, and an object with a heartbeat beside the results.
Stores differ in conditional writes (SeaweedFS before 4.18 accepts several at once), so the object
is read back after a pause, and again before every beat and every upload: of two processes that both
took the lock, one continues.
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
from mal.storage.patience import impatient
from mal.storage.uris import RemoteUri

LOCK_NAME = ".mal.lock"
BEAT_S = 15.0
BEAT_AFTER_FAILURE_S = 3.0
GONE_AFTER_S = 60.0
READ_BACK_S = 1.0
POLL_S = 2.0

_STAGING_ID_NAME = "staging-id"
_POD_VARIABLES = ("KFP_POD_NAME", "POD_NAME")

log = logging.getLogger(__name__)


def describe_process() -> dict[str, Any]:
    """Return host, process id, start time and pod of this process, for messages of others."""
    pod = next((os.environ[name] for name in _POD_VARIABLES if os.environ.get(name)), "")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now()}
    return {**holder, "pod": pod} if pod else holder


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def holding_folder(folder: Path, uri: str) -> Iterator[bool]:
    """Hold the lock of an existing local folder; yield False where its file system has no locks.

    Args:
        folder: The folder.
        uri: The name of the results folder in messages.

    Raises:
        StorageError: Another process holds the lock; the message names it.
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
        content = json.dumps(describe_process()).encode()
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        yield True
    finally:
        is_held = False
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, uri: str) -> int | None:
    """Return the descriptor of the locked file; None where the file system has no locks.

    Raises:
        StorageError: Another process holds it, or the file cannot be written.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unwritable_folder(uri, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            content = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise StorageError(_in_use(uri, _parse(content))) from None
        except OSError as error:
            os.close(descriptor)
            log.warning("%s has no file locks (%s): a second run is not kept out", uri, error)
            return None
        # The earlier holder may have unlinked the file between the opening and the lock.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def unwritable_folder(uri: str, error: OSError) -> StorageError:
    """Return the error for a results folder that cannot be written."""
    return StorageError(
        f"results_dir must be a folder that can be written, got {uri} ({error.strerror}). "
        "Choose another."
    )


@dataclass(frozen=True)
class _LockObject:
    """The lock object as it was read: its holder's description, and the etag."""

    holder: dict[str, Any]
    etag: str

    @property
    def is_released(self) -> bool:
        """Whether the holder has ended but was not allowed to delete the object."""
        return bool(self.holder.get("is_released"))

    def is_next_beat_of(self, earlier: _LockObject) -> bool:
        return any(self.holder.get(key) != earlier.holder.get(key) for key in ("token", "beat"))


class RemoteLock:
    """The lock object of a remote results folder, as a context manager.

    Args:
        folder: The results folder.
        staging: The folder of this machine that mirrors it. Its own lock is held.
        is_alone: Whether that lock keeps all other processes out of it.
    """

    def __init__(self, folder: RemoteUri, staging: Path, *, is_alone: bool) -> None:
        self._is_alone = is_alone
        self._uri = folder.child(LOCK_NAME)
        self._folder = folder
        self._holder = {
            **describe_process(),
            "token": secrets.token_hex(16),
            "staging": _staging_id(staging),
        }
        self._num_beats = 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="results-lock")

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
        """Stop the heartbeat and release the lock."""
        self._has_ended.set()
        self._thread.join(timeout=GONE_AFTER_S)
        with contextlib.suppress(StorageError), impatient():
            found = self._read()
            if found is None or not self._is_mine(found):
                return
            try:
                delete_object(self._uri)
            except StorageError:  # an account without the right to delete
                write_object(self._content(is_released=True), self._uri)

    def require_held(self) -> None:
        """Check that no other process has taken the lock over.

        Raises:
            StorageError: One has, because this process seemed to have ended.
        """
        found = self._read()
        if found is not None and not self._is_mine(found) and not found.is_released:
            raise StorageError(
                f"Another run has taken {self._folder} over: {_name(found.holder)}. This process "
                f"had sent no heartbeat for {GONE_AFTER_S:.0f} s, and writes nothing more there."
            )

    def _try_to_take(self) -> bool:
        found = self._read()
        if found is not None and self._is_mine(found):
            return True  # the answer to an earlier write was lost
        if found is not None and not found.is_released:
            found = self._wait_for_end(found)
        etag = found.etag if found else ""
        written = write_object_if(self._content(), self._uri, expected_etag=etag)
        time.sleep(READ_BACK_S)
        if written is None:
            return False
        found = self._read()
        return found is not None and self._is_mine(found)

    def _wait_for_end(self, found: _LockObject) -> _LockObject | None:
        """Return the lock object of a holder that has ended; None where it deleted the object.

        Raises:
            StorageError: The holder is alive.
        """
        if self._is_alone and found.holder.get("staging") == self._holder["staging"]:
            return found  # its holder had the staging folder's lock, which this process has now
        age_s = age_of_object_s(self._uri) or 0.0
        first, end_s = found, time.monotonic() + GONE_AFTER_S - age_s
        if age_s < GONE_AFTER_S:
            log.info(
                "%s is held by %s; its last heartbeat was %.0f s ago. Waiting for another one, at "
                "most until it is %.0f s old",
                self._folder, _name(found.holder), age_s, GONE_AFTER_S,
            )  # fmt: skip
        while time.monotonic() < end_s:
            time.sleep(POLL_S)
            now = self._read()
            if now is None or now.is_released:
                return now
            if now.is_next_beat_of(first):
                raise StorageError(_in_use(str(self._folder), now.holder))
            found = now
        log.warning(
            "%s was held by %s, which sent no heartbeat for %.0f s: taking it over",
            self._folder, _name(found.holder), GONE_AFTER_S,
        )  # fmt: skip
        return found

    def _beat(self) -> None:
        """Write the lock object every BEAT_S, unless another process has taken it."""
        has_failed = False
        while not self._has_ended.wait(BEAT_AFTER_FAILURE_S if has_failed else BEAT_S):
            try:
                with impatient():
                    found = self._read()
                if found is not None and not self._is_mine(found):
                    return
                self._num_beats += 1
                with impatient():
                    write_object(self._content(), self._uri)
                has_failed = False
            except StorageError as error:
                # Beats are soon after the store is back, before another process takes the lock.
                if not has_failed:
                    log.warning("the lock of %s could not be renewed: %s", self._folder, error)
                has_failed = True

    def _content(self, *, is_released: bool = False) -> bytes:
        content = {**self._holder, "beat": self._num_beats, "beat_at": _now()}
        if is_released:
            content["is_released"] = True
        return json.dumps(content).encode()

    def _read(self) -> _LockObject | None:
        found = read_object(self._uri)
        return _LockObject(_parse(found[0]), found[1]) if found else None

    def _is_mine(self, found: _LockObject) -> bool:
        return bool(found.holder.get("token") == self._holder["token"])


def _staging_id(staging: Path) -> str:
    """Return an id of this folder that no folder of the same path on another machine has."""
    path = staging / _STAGING_ID_NAME
    with contextlib.suppress(OSError):
        if known := path.read_text(encoding="utf-8").strip():
            return known
    staging_id = secrets.token_hex(16)
    path.write_text(staging_id, encoding="utf-8")
    return staging_id


def _parse(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        holder = json.loads(content)
        if isinstance(holder, dict):
            return holder
    return {}


def _name(holder: dict[str, Any]) -> str:
    pod = f" (pod {holder['pod']})" if holder.get("pod") else ""
    return (
        f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}{pod} "
        f"since {holder.get('started', 'an unknown time')}"
    )


def _in_use(uri: str, holder: dict[str, Any]) -> str:
    return (
        f"results_dir must not be in use, got {uri}, which is held by {_name(holder)}. Wait for "
        "its end, or choose another results_dir."
    )
