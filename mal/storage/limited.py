"""Cached folders with a common size limit: those unused for longest are removed.

Layout below the cache folder, beside that of `mal.storage.cache`:
    features/<key>/             the content
    features/<key>.json         its size, written first so that other processes leave it free;
                                touched at every use
    features/<key>.complete     lies beside a complete folder
    locks/<key>.use             held shared by every process that uses the folder; no process
                                removes it then
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from mal.artifacts import write_json
from mal.errors import StorageError
from mal.storage.cache import (
    cache_dir,
    check_room,
    fill_folder,
    locked,
    partial_of,
    wrap_cache_errors,
)

_log = logging.getLogger(__name__)

_ROOM_LOCK = "features.room"


@contextlib.contextmanager
def limited_folder(
    key: str, fill: Callable[[Path], None], *, num_bytes: int, limit_bytes: int
) -> Iterator[Path]:
    """Yield the cached folder `key`; the first process fills it, none removes it inside the block.

    Args:
        key: The digest of the content.
        fill: Writes the content into an empty folder, which is renamed afterwards.
        num_bytes: Upper bound of the content's size.
        limit_bytes: Upper bound of all such folders; those unused for longest are removed.

    Raises:
        StorageError: The folders in use leave no room, or the cache cannot be written.
    """
    entry = _Entry(key)
    with wrap_cache_errors("features"), contextlib.ExitStack() as stack:
        entry.folder.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(entry.in_use())
        held = stack.pop_all()
    with held:
        with locked(key):
            if entry.is_complete():
                os.utime(entry.record)
            else:
                _reserve_room(entry, num_bytes, limit_bytes)
                _fill(entry, fill)
        yield entry.folder


class _Entry:
    """The files of a key."""

    def __init__(self, key: str) -> None:
        features = cache_dir() / "features"
        self.key = key
        self.folder = features / key
        self.record, self.marker = features / f"{key}.json", features / f"{key}.complete"

    def is_complete(self) -> bool:
        return self.folder.is_dir() and self.marker.is_file() and self.record.is_file()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes from removing the folder; the kernel ends it with the process."""
        with _lock_file(self.key) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def remove_unless_used(self) -> bool:
        """Remove the folder; return False if a process, this one included, uses it."""
        with _lock_file(self.key) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.marker.unlink(missing_ok=True)
            for folder in (partial_of(self.folder), self.folder):
                shutil.rmtree(folder, ignore_errors=True)
            self.record.unlink(missing_ok=True)
            return True


def _lock_file(key: str) -> IO[bytes]:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{key}.use").open("ab")


def _fill(entry: _Entry, fill: Callable[[Path], None]) -> None:
    with wrap_cache_errors("features"):
        entry.marker.unlink(missing_ok=True)
        try:
            fill_folder(entry.folder, fill)
            entry.marker.touch()
        finally:
            if not entry.marker.exists():
                entry.record.unlink(missing_ok=True)


def _reserve_room(entry: _Entry, num_bytes: int, limit_bytes: int) -> None:
    """Remove unused folders, the oldest first, until the entry fits, and record its size."""
    with locked(_ROOM_LOCK), wrap_cache_errors("features"):
        others = sorted(_sizes_by_age(entry.key).items(), key=lambda item: item[1])
        total = num_bytes + sum(size for _, (_, size) in others)
        for key, (_, size) in others:
            if total <= limit_bytes:
                break
            if _Entry(key).remove_unless_used():
                _log.info("removed cached features %s (%.1f MB) to make room", key, size / 1e6)
                total -= size
        if total > limit_bytes:
            num_free = max(limit_bytes - total + num_bytes, 0)
            raise StorageError(
                f"The cached features in use leave {num_free / 2**30:.2f} GiB of "
                f"{limit_bytes / 2**30:.2f} in {entry.folder.parent}, but this run needs "
                f"{num_bytes / 2**30:.2f}. Wait for the other runs, or raise the limit."
            )
        check_room(entry.folder.parent, num_bytes, "features")
        write_json(entry.record, {"num_bytes": num_bytes})


def _sizes_by_age(own_key: str) -> dict[str, tuple[int, int]]:
    """Return time of last use (ns) and reserved bytes of all other entries."""
    found = {}
    for record in (cache_dir() / "features").glob("*.json"):
        if record.stem != own_key:
            with contextlib.suppress(OSError, ValueError, KeyError):
                size = int(json.loads(record.read_text(encoding="utf-8"))["num_bytes"])
                found[record.stem] = (record.stat().st_mtime_ns, size)
    return found
