"""A results folder, local or behind `s3://`, that all other code uses as a local one."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mal.artifacts import MANIFEST_FILE, RUN_FILE, STATUS_FILE, write_json, writing_atomically
from mal.errors import StorageError, StoreAwayError
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
from mal.storage.run_lock import RemoteLock, holding_folder, unwritable_folder
from mal.storage.uris import RemoteUri, parse_remote_uri

_WRITTEN_LAST = (MANIFEST_FILE, STATUS_FILE)

_Fingerprint = list[int | str]

log = logging.getLogger(__name__)


class ResultsFolder:
    """The folder that a run writes; a remote one has a local mirror in the cache.

    Of several processes of a run only rank 0 uploads. The remote folder is the truth: a file that
    was uploaded and is missing there is deleted here. Only `remove` deletes remote files.

    Attributes:
        uri: The path or URI as the user gave it.
        path: The local folder; it exists.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock: RemoteLock | None = None
        self._writing = threading.RLock()
        self._round = threading.Lock()
        self._in_round: set[str] = set()
        self._retired: set[str] = set()
        self._remote = remote = parse_remote_uri(uri)
        if remote is None:
            self.path = Path(uri).expanduser()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable_folder(uri, error) from error
            return
        address = store_address(remote)
        key = key_of(address, remote.scheme, remote.bucket, remote.folder_prefix)
        self._staging = cache_dir() / "results" / key
        self._uploaded_file = self._staging / "uploaded.json"
        self.path = self._staging / (PurePosixPath(remote.key).name or remote.bucket)
        with wrap_cache_errors(uri):
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def is_remote(self) -> bool:
        """Whether `upload` and `restore` have an effect."""
        return self._remote is not None

    @contextlib.contextmanager
    def held(self) -> Iterator[ResultsFolder]:
        """Keep other processes, on any machine, from writing here; yields the folder itself.

        Raises:
            StorageError: Another process holds the folder; the message names it.
        """
        if self._remote is None:
            with holding_folder(self.path, self.uri):
                yield self
            return
        with (
            holding_folder(self._staging, self.uri) as is_alone,
            RemoteLock(self._remote, self._staging, is_alone=is_alone) as lock,
        ):
            self._lock = lock
            try:
                yield self
            finally:
                self._lock = None

    def adopt_remote_state(self) -> None:
        """Delete local files that are gone from the remote folder, at the start of a run.

        A file that was never uploaded stays. If the remote folder lost all uploaded files, or has
        another run by now, such files belong to no run: they are moved to a folder that the log
        names.
        """
        if self._remote is None:
            return
        remote, uploaded = self._list_remote(), self._read_uploaded()
        gone = [name for name in uploaded if name not in remote]
        has_lost_all = bool(uploaded) and len(gone) == len(uploaded)
        is_over = has_lost_all or (RUN_FILE in remote and self._is_other_run())
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
                "%s no longer holds the run that was uploaded from here: %d files that were not "
                "uploaded are in %s", self.uri, len(rest), aside,
            )  # fmt: skip

    def _is_other_run(self) -> bool:
        """Return whether the remote folder's run differs from the one whose files are here."""
        assert self._remote is not None
        found = read_object(self._remote.child(RUN_FILE))
        try:
            mine, theirs = (
                json.loads(content)["run_id"]
                for content in ((self.path / RUN_FILE).read_bytes(), found[0] if found else b"")
            )
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return bool(mine != theirs)

    def remove(self, patterns: Sequence[str]) -> None:
        """Delete local and remote files by name or pattern (`*` crosses folders), in this order."""
        with self._writing:
            self._remove(patterns)

    def _remove(self, patterns: Sequence[str]) -> None:
        remote = self._list_remote() if self._remote else {}
        uploaded = self._read_uploaded() if self._remote else {}
        local = {
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.is_symlink() or path.is_file()  # a broken link is no file
        }
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

    def retire(self, path: Path) -> None:
        """Delete a file; its remote copy is deleted once its successors are uploaded.

        A file that is being uploaded is deleted after that upload: a store that is slower than the
        checkpoints come would else never get one.
        """
        name = path.relative_to(self.path).as_posix()
        with self._round:
            self._retired.add(name)
            if name not in self._in_round:
                path.unlink(missing_ok=True)

    def restore(self, names: Sequence[str] = ("*",)) -> list[Path]:
        """Fetch the files that an earlier run, on any machine, left in the remote folder.

        A local file stays unless the remote one is younger.

        Args:
            names: File names or patterns (`*` crosses folders), relative to the folder.

        Returns:
            The files that were fetched.
        """
        if self._remote is None:
            return []
        fetched = []
        uploaded = self._read_uploaded()
        for name, stored in self._list_remote().items():
            if not _matches(name, names):
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
        """Write every new or changed file to the remote folder, and return their number.

        Links become copies. Another thread may write files meanwhile.

        Raises:
            StorageError: The store denied or failed a request, or another run has the folder.
        """
        if self._remote is None:
            return 0
        with self._writing:
            return self._upload(self._remote)

    def _upload(self, remote: RemoteUri) -> int:
        if self._lock is not None:
            self._lock.require_held()
        with self._round:
            # The successors of what is retired by now are among these files.
            retired = set(self._retired)
            files = self._describe_files()
            self._in_round = {name for _, name, _ in files}
        uploaded = self._read_uploaded()
        num_written = 0
        try:
            remote_sizes = {name: stored.size for name, stored in self._list_remote().items()}
            for path, name, fingerprint in files:
                if uploaded.get(name) == fingerprint and remote_sizes.get(name) == fingerprint[0]:
                    continue
                try:
                    if not self._write_remote(path, remote, name, fingerprint, uploaded):
                        continue
                except (FileNotFoundError, StorageError):
                    if path.exists():
                        raise
                    continue  # deleted since it was listed
                uploaded[name] = fingerprint
                num_written += 1
            self._delete_retired(remote, retired, uploaded)
        finally:
            with self._round:
                self._in_round = set()
                for name in self._retired:
                    (self.path / name).unlink(missing_ok=True)
                self._retired -= retired - uploaded.keys()
            self._write_uploaded(uploaded)
        return num_written

    def _delete_retired(
        self, remote: RemoteUri, retired: set[str], uploaded: dict[str, _Fingerprint]
    ) -> None:
        for name in sorted(retired & uploaded.keys()):
            try:
                delete_object(remote.child(name))
            except StoreAwayError:
                raise
            except StorageError as error:  # an account without the right to delete
                log.warning("%s stays: %s", name, error)
            del uploaded[name]

    def _write_remote(
        self,
        path: Path,
        remote: RemoteUri,
        name: str,
        fingerprint: _Fingerprint,
        uploaded: Mapping[str, _Fingerprint],
    ) -> bool:
        """Upload a file, or copy remotely the target of a link that stays inside the folder.

        Returns:
            False for a link that has got a new target, which is not uploaded yet.
        """
        target = str(fingerprint[2])
        if path.is_symlink() and not Path(target).is_absolute():
            if target not in uploaded:
                return False
            copy_object(remote.child(target), remote.child(name))
        else:
            upload_object(path, remote.child(name))
        return True

    def _describe_files(self) -> list[tuple[Path, str, _Fingerprint]]:
        """Return path, name and fingerprint of every finished file, in the order of an upload."""
        files = []
        for path in self._local_files():
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                name = path.relative_to(self.path).as_posix()
                files.append((path, name, _fingerprint(path, self.path)))
        return files

    def _local_files(self) -> list[Path]:
        """Return every finished file: run.json first, links after targets, status last."""
        # Path.rglob fails where another thread deletes a folder; os.walk passes over it.
        found = (Path(root, name) for root, _, names in os.walk(self.path) for name in names)
        files = [path for path in found if path.is_file() and not path.name.startswith(".")]
        return sorted(
            files, key=lambda p: (p.name != RUN_FILE, p.name in _WRITTEN_LAST, p.is_symlink(), p)
        )

    def _list_remote(self) -> dict[str, StoredObject]:
        assert self._remote is not None
        return _list_results(self._remote)

    def _read_uploaded(self) -> dict[str, _Fingerprint]:
        """Return the files that this machine uploaded; {} makes `upload` write them again."""
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, _Fingerprint] = json.loads(self._uploaded_file.read_bytes())
            return known
        return {}

    def _write_uploaded(self, uploaded: dict[str, _Fingerprint]) -> None:
        with wrap_cache_errors(self.uri):
            write_json(self._uploaded_file, uploaded)


def fetch_results(uri: str, folder: Path, patterns: Sequence[str] = ("*",)) -> set[str]:
    """Copy finished results to a local folder, and return their relative names.

    Args:
        uri: Results folder, local or remote.
        folder: The target folder.
        patterns: Relative names or patterns (`*` crosses folders).
    """
    remote = parse_remote_uri(uri)
    found: Mapping[str, StoredObject | Path]
    if remote is None:
        root = Path(uri)
        paths = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        found = {name: path for name, path in paths.items() if _is_result(name)}
    else:
        found = _list_results(remote)
    wanted = {name for name in found if _matches(name, patterns)}
    for name in sorted(wanted):
        source, path = found[name], folder / relative_path_of(name, uri)
        if isinstance(source, StoredObject):
            fetch_object(source, path)
        else:
            with wrap_cache_errors(uri), writing_atomically(path) as temporary:
                shutil.copyfile(source, temporary)
    return wanted


def _list_results(remote: RemoteUri) -> dict[str, StoredObject]:
    prefix_length = len(remote.folder_prefix)
    found = {stored.uri.key[prefix_length:]: stored for stored in list_objects(remote)}
    return {name: stored for name, stored in found.items() if _is_result(name)}


def _is_result(name: str) -> bool:
    """Return whether a name is that of a result; locks and partial files begin with a dot."""
    return not PurePosixPath(name).name.startswith(".")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _fingerprint(path: Path, root: Path) -> _Fingerprint:
    """Return size, time and path of a file's content; the path changes with a link's target."""
    stat = path.stat()
    target, root = path.resolve(), root.resolve()
    inside = target.relative_to(root) if target.is_relative_to(root) else target
    return [stat.st_size, stat.st_mtime_ns, str(inside)]


def _is_outdated(path: Path, stored: StoredObject) -> bool:
    return not path.is_file() or path.stat().st_mtime < stored.modified.timestamp() - 1
