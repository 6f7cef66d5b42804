"""A results folder, local or behind `s3://`, that the rest of the program uses as a local one."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mal.artifacts import MANIFEST_FILE, RUN_FILE, STATUS_FILE, write_json, writing_atomically
from mal.errors import StorageError
from mal.storage.archives import relative_path_of
from mal.storage.cache import cache_dir, fetch_object, key_of, wrap_cache_errors
from mal.storage.objects import (
    StoredObject,
    copy_object,
    delete_object,
    list_objects,
    read_object,
    store_address,
    upload_object,
)
from mal.storage.run_lock import RemoteLock, holding_folder
from mal.storage.uris import parse_remote_uri

_WRITTEN_LAST = (MANIFEST_FILE, STATUS_FILE)

_Fingerprint = list[int | str]

log = logging.getLogger(__name__)


class ResultsFolder:
    """Where a run writes; a remote folder has a local twin in the cache.

    Of several processes of a run only rank 0 uploads. The remote folder decides what there is:
    what was uploaded and is gone there is gone here. Only `remove` deletes remotely.

    Attributes:
        uri: As it was given.
        path: The local folder; it exists.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock: RemoteLock | None = None
        self._remote = parse_remote_uri(uri)
        if self._remote is None:
            self.path = Path(uri).expanduser()
            self._make_local_folder()
            return
        remote = self._remote
        address = store_address(remote.scheme)
        key = key_of(address, remote.scheme, remote.bucket, remote.folder_prefix)
        self._staging = staging = cache_dir() / "results" / key
        self._uploaded_file = staging / "uploaded.json"
        self.path = staging / (PurePosixPath(self._remote.key).name or self._remote.bucket)
        with wrap_cache_errors(uri):
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def is_remote(self) -> bool:
        """Whether `upload` and `restore` do anything."""
        return self._remote is not None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing here, on any machine.

        Raises:
            StorageError: Another one does, and the message says which.
        """
        if self._remote is None:
            with holding_folder(self.path, self.uri):
                yield
            return
        with (
            holding_folder(self._staging, self.uri) as is_alone,
            RemoteLock(self._remote, self._staging, is_alone=is_alone) as lock,
        ):
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def adopt_remote_state(self) -> None:
        """Forget what is gone from the remote folder, at the start of a run.

        A file that was never uploaded stays. Where all that had been uploaded is gone, or the
        remote folder has another run by now, such files belong to no run any more: they are moved
        out of the way, and the log names where to.
        """
        if self._remote is None:
            return
        remote, uploaded = self._list_remote(), self._read_uploaded()
        gone = [name for name in uploaded if name not in remote]
        has_left = bool(uploaded) and len(gone) == len(uploaded)
        is_over = has_left or (RUN_FILE in remote and self._is_other_run())
        for name in uploaded if is_over else gone:
            (self.path / name).unlink(missing_ok=True)
        if gone or is_over:
            self._write_uploaded(
                {} if is_over else {n: f for n, f in uploaded.items() if n not in gone}
            )
        rest = self._local_files() if is_over else []
        if rest:
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
            aside = self._staging / f"set-aside-{stamp}"
            with wrap_cache_errors(self.uri):
                self.path.rename(aside)
                self.path.mkdir()
            log.warning(
                "%s does not hold the run any more that was uploaded from here: what of it was not "
                "uploaded (%d files) is in %s", self.uri, len(rest), aside,
            )  # fmt: skip

    def _is_other_run(self) -> bool:
        """Whether the remote folder's run is not the one whose files are here."""
        assert self._remote is not None
        path = self.path / RUN_FILE
        found = read_object(self._remote.child(RUN_FILE))
        try:
            mine, theirs = (
                json.loads(content)["run_id"]
                for content in (path.read_bytes(), found[0] if found else b"")
            )
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return bool(mine != theirs)

    def remove(self, patterns: Sequence[str]) -> None:
        """Delete files by name or pattern (`*` crosses folders), here and remotely.

        They go in the order of the patterns.

        Raises:
            StorageError: One may not be deleted.
        """
        remote = self._list_remote() if self._remote else {}
        uploaded = self._read_uploaded() if self._remote else {}
        local = {path.relative_to(self.path).as_posix() for path in self._own_files()}
        for pattern in patterns:
            for name in sorted(n for n in {*local, *remote} if fnmatch.fnmatchcase(n, pattern)):
                if self._remote is not None and name in remote:
                    del remote[name]
                    delete_object(self._remote.child(name))
                    uploaded.pop(name, None)
                local.discard(name)
                (self.path / name).unlink(missing_ok=True)
        if self._remote is not None:
            self._write_uploaded(uploaded)

    def _own_files(self) -> list[Path]:
        """Every file and link, broken links too."""
        return [p for p in self.path.rglob("*") if p.is_symlink() or p.is_file()]

    def restore(self, names: Sequence[str] = ("*",)) -> list[Path]:
        """Fetch what an earlier run, perhaps on another machine, left in the remote folder.

        A local file stays unless the remote one is younger.

        Args:
            names: File names or patterns (`*` crosses folders), relative to the folder.

        Returns:
            Those fetched.
        """
        if self._remote is None:
            return []
        fetched = []
        uploaded = self._read_uploaded()
        for name, stored in self._list_remote().items():
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
                continue
            path = self.path / relative_path_of(name, str(self._remote))
            if not _is_outdated(path, stored):
                continue
            fetch_object(stored, path)
            uploaded[name] = _fingerprint(path, self.path)
            fetched.append(path)
        self._write_uploaded(uploaded)
        return fetched

    def upload(self) -> int:
        """Write every new or changed file to the remote folder; links become copies.

        Returns:
            How many were written.

        Raises:
            StorageError: The store refuses one.
        """
        if self._remote is None:
            return 0
        if self._lock is not None:
            self._lock.require_held()
        remote_sizes = {name: stored.size for name, stored in self._list_remote().items()}
        uploaded = self._read_uploaded()
        num_written = 0
        try:
            for path in self._local_files():
                name = path.relative_to(self.path).as_posix()
                fingerprint = _fingerprint(path, self.path)
                if uploaded.get(name) == fingerprint and remote_sizes.get(name) == fingerprint[0]:
                    continue
                self._write_remote(path, name)
                uploaded[name] = fingerprint
                num_written += 1
        finally:
            self._write_uploaded(uploaded)
        return num_written

    def _write_remote(self, path: Path, name: str) -> None:
        """Upload a file, or copy remotely what a link inside the folder points to."""
        assert self._remote is not None
        target = path.resolve()
        if path.is_symlink() and target.is_relative_to(self.path.resolve()):
            source = target.relative_to(self.path.resolve()).as_posix()
            copy_object(self._remote.child(source), self._remote.child(name))
        else:
            upload_object(path, self._remote.child(name))

    def _local_files(self) -> list[Path]:
        """Every finished file: whose they are first, links after their targets, status last."""
        files = [
            path
            for path in self.path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        return sorted(
            files, key=lambda p: (p.name != RUN_FILE, p.name in _WRITTEN_LAST, p.is_symlink(), p)
        )

    def _list_remote(self) -> dict[str, StoredObject]:
        assert self._remote is not None
        prefix_length = len(self._remote.folder_prefix)
        found = {stored.uri.key[prefix_length:]: stored for stored in list_objects(self._remote)}
        return {name: stored for name, stored in found.items() if _is_result(name)}

    def _read_uploaded(self) -> dict[str, _Fingerprint]:
        """Read what this machine knows to be remote; lost or broken, files are written again."""
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, _Fingerprint] = json.loads(self._uploaded_file.read_bytes())
            return known
        return {}

    def _write_uploaded(self, uploaded: dict[str, _Fingerprint]) -> None:
        with wrap_cache_errors(self.uri):
            write_json(self._uploaded_file, uploaded)

    def _make_local_folder(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"results_dir must be a folder that can be written, got {self.uri} "
                f"({error.strerror}). Choose another."
            ) from error


def fetch_results(uri: str, folder: Path, patterns: Sequence[str] = ("*",)) -> set[str]:
    """Copy finished results from where they are to a local folder.

    Args:
        uri: Results folder, local or remote.
        folder: Where the copies go, by the same relative names.
        patterns: Of relative names (`*` crosses folders).

    Returns:
        The names of those found.

    Raises:
        StorageError: A place cannot be read or written.
    """
    remote = parse_remote_uri(uri)
    found: Mapping[str, StoredObject | Path]
    if remote is None:
        root = Path(uri)
        found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    else:
        found = {s.uri.key[len(remote.folder_prefix) :]: s for s in list_objects(remote)}
    wanted = {
        name
        for name in found
        if _is_result(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    for name in sorted(wanted):
        source, path = found[name], folder / relative_path_of(name, uri)
        if isinstance(source, StoredObject):
            fetch_object(source, path)
        else:
            with wrap_cache_errors(uri), writing_atomically(path) as temporary:
                shutil.copyfile(source, temporary)
    return wanted


def _is_result(name: str) -> bool:
    """Whether a name is that of a result, and of no lock or half-written file."""
    return not PurePosixPath(name).name.startswith(".")


def _fingerprint(path: Path, root: Path) -> _Fingerprint:
    """Size, time and place of a file's content; the place tells where a link now points."""
    facts = path.stat()
    place = path.resolve()
    inside = place.relative_to(root.resolve()) if place.is_relative_to(root.resolve()) else place
    return [facts.st_size, facts.st_mtime_ns, str(inside)]


def _is_outdated(path: Path, stored: StoredObject) -> bool:
    return not path.is_file() or path.stat().st_mtime < stored.modified.timestamp() - 1
