"""A results folder, local or behind `s3://`, that the rest of the program uses as a local one."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from mal.artifacts import MANIFEST_FILE, STATUS_FILE, write_json, writing_atomically
from mal.errors import StorageError
from mal.storage.archives import relative_path_of
from mal.storage.cache import cache_dir, fetch_object, key_of, naming_cache_trouble
from mal.storage.objects import StoredObject, copy_object, list_objects, upload_object
from mal.storage.uris import parse_remote_uri

_WRITTEN_LAST = (MANIFEST_FILE, STATUS_FILE)

_Fingerprint = list[int | str]


class ResultsFolder:
    """Where a run writes; a remote folder has a local twin in the cache.

    Of several processes of a run only rank 0 uploads. Nothing is ever deleted remotely.

    Attributes:
        uri: As it was given.
        path: The local folder; it exists.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._remote = parse_remote_uri(uri)
        if self._remote is None:
            self.path = Path(uri).expanduser()
            self._make_local_folder()
            return
        staging = cache_dir() / "results" / key_of(self._remote.scheme, self._remote.bucket,
                                                   self._remote.folder_prefix)  # fmt: skip
        self._uploaded_file = staging / "uploaded.json"
        self.path = staging / (PurePosixPath(self._remote.key).name or self._remote.bucket)
        with naming_cache_trouble(uri):
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def is_remote(self) -> bool:
        """Whether `upload` and `restore` do anything."""
        return self._remote is not None

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
        """Every finished file: links after what they point to, the run's status at the very end."""
        files = [
            path
            for path in self.path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        return sorted(files, key=lambda p: (p.name in _WRITTEN_LAST, p.is_symlink(), p))

    def _list_remote(self) -> dict[str, StoredObject]:
        assert self._remote is not None
        prefix_length = len(self._remote.folder_prefix)
        return {stored.uri.key[prefix_length:]: stored for stored in list_objects(self._remote)}

    def _read_uploaded(self) -> dict[str, _Fingerprint]:
        """Read what this machine knows to be remote; lost or broken, files are written again."""
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, _Fingerprint] = json.loads(self._uploaded_file.read_bytes())
            return known
        return {}

    def _write_uploaded(self, uploaded: dict[str, _Fingerprint]) -> None:
        with naming_cache_trouble(self.uri):
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
    wanted = {n for n in found if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)}
    for name in sorted(wanted):
        source, path = found[name], folder / relative_path_of(name, uri)
        if isinstance(source, StoredObject):
            fetch_object(source, path)
        else:
            with naming_cache_trouble(uri), writing_atomically(path) as temporary:
                shutil.copyfile(source, temporary)
    return wanted


def _fingerprint(path: Path, root: Path) -> _Fingerprint:
    """Size, time and place of a file's content; the place tells where a link now points."""
    facts = path.stat()
    place = path.resolve()
    inside = place.relative_to(root.resolve()) if place.is_relative_to(root.resolve()) else place
    return [facts.st_size, facts.st_mtime_ns, str(inside)]


def _is_outdated(path: Path, stored: StoredObject) -> bool:
    return not path.is_file() or path.stat().st_mtime < stored.modified.timestamp() - 1
