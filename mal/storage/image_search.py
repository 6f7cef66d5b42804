"""Finds the files of a set's images, also where their names are not quite those of the files.

A file that is not where its name says is taken where exactly one fits, and no other image of the
set fits it too: of `train/1.jpg` and `val/1.jpg`, a folder with `1.jpg` alone has neither for sure.

Memory: the index of a folder has no Python object per file. It is built only where a file is not
where its name says, and is gone when the search ends; what is kept of it is the paths that were
found, in arrays that loader processes share.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from mal.shown import shown
from mal.storage.file_names import (
    COMPARISONS,
    MAX_NAME_CHARS,
    Parts,
    direct_path,
    fits,
    has_last_part_of,
    is_url,
    search_key,
    search_keys,
    search_keys_in_code_pages,
    without_suffix,
)

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
     ".ppm", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif"}
)  # fmt: skip

_FREE, _CONTESTED = -1, -2  # of a file: no image, several
_MAX_CANDIDATES = 500
_MAX_ROOTS = 20
_MAX_REASONS = 1000
_ENCODING_ERRORS = "surrogatepass"

_log = logging.getLogger(__name__)


class FileIndex:
    """The paths of the image files below a folder, found by the key of their last part."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        hashes = array("q")
        for path in paths:
            self._text += path.encode("utf-8", _ENCODING_ERRORS)
            self._ends.append(len(self._text))
            hashes.append(hash(search_key(path.rpartition("/")[2])))
        hash_F = np.array(hashes, dtype=np.int64)
        self._order_F = np.argsort(hash_F, kind="stable").astype(np.int32)
        self._hash_F = hash_F[self._order_F]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        data = self._text[self._ends[row] : self._ends[row + 1]]
        return data.decode("utf-8", _ENCODING_ERRORS)

    def rows_of(self, keys: Iterable[str]) -> list[int]:
        """Return the files whose last part has the hash of one of these keys."""
        rows: set[int] = set()
        for key in keys:
            low = int(np.searchsorted(self._hash_F, hash(key), side="left"))
            high = int(np.searchsorted(self._hash_F, hash(key), side="right"))
            rows.update(self._order_F[low:high].tolist())
        return sorted(rows)


class FoundImages:
    """Where the images of a set are.

    Attributes:
        missing: Indices of the images without a file.
        reasons: Why an image has no file, or which file is nearly its own; of the first ones.
    """

    def __init__(self, roots: Sequence[Path], num_images: int) -> None:
        self.roots = roots
        self.missing: set[int] = set()
        self.reasons: dict[int, str] = {}
        self._rule_I = np.zeros(num_images, dtype=np.int8)  # 0: by its own name
        self._row_I = np.zeros(0, dtype=np.int32)
        self._text = bytearray()
        self._ends = array("q", [0])

    def set_path(self, index: int, path: str, rule: int) -> None:
        """Record the path, below the folder, of an image that was found by a comparison."""
        if not len(self._row_I):
            self._row_I = np.full(len(self._rule_I), -1, dtype=np.int32)
        self._row_I[index] = len(self._ends) - 1
        self._rule_I[index] = rule + 1
        self._text += path.encode("utf-8", _ENCODING_ERRORS)
        self._ends.append(len(self._text))

    def relative_path_of(self, index: int) -> str | None:
        """Return the path below the folder; None for an image that has its own name, or none."""
        row = int(self._row_I[index]) if len(self._row_I) else -1
        if row < 0:
            return None
        data = self._text[self._ends[row] : self._ends[row + 1]]
        return data.decode("utf-8", _ENCODING_ERRORS)

    def path_of(self, index: int, name: str) -> Path | None:
        """Return the file of an image; None where it has none."""
        if index in self.missing:
            return None
        path = self.relative_path_of(index)
        return self.roots[0] / path if path is not None else find_by_own_name(self.roots, name)

    def rule_of(self, index: int) -> str:
        """Return how an image was found; '' for one that has its own name, or no file."""
        rule = int(self._rule_I[index])
        return COMPARISONS[rule - 1].words if rule else ""

    def log_rules(self, names: Sequence[str]) -> None:
        """Log once for each comparison how many images it found, with an example."""
        for rule, comparison in enumerate(COMPARISONS, 1):
            indices = np.flatnonzero(self._rule_I == rule)
            if len(indices):
                first = int(indices[0])
                verb = "image was" if len(indices) == 1 else "images were"
                _log.info(
                    "%d %s found %s, e.g. %s is %s",
                    len(indices), verb, comparison.words,
                    shown(names[first]), shown(self.relative_path_of(first) or ""),
                )  # fmt: skip


def search_roots(folder: Path) -> list[Path]:
    """Return a folder and, if it holds nothing but one folder, that one too, and so on.

    Archives often wrap their files in one folder.
    """
    roots = [folder]
    while (inner := _only_folder_in(roots[-1])) is not None and len(roots) < _MAX_ROOTS:
        roots.append(inner)
    return roots


def find_by_own_name(roots: Sequence[Path], name: str) -> Path | None:
    """Find an image by its COCO `file_name` alone; None where there is none."""
    path = direct_path(name)
    if path is None:
        return None
    spellings: list[PurePosixPath | str] = [path]
    if "\\" in name and "/" not in name:  # Linux allows it in the name of a file
        spellings.append(name)
    try:
        candidates = (root / spelling for root in roots for spelling in spellings)
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except OSError:  # the name is too long
        return None


def find_images(folder: Path, names: Sequence[str], *, is_logged: bool = True) -> FoundImages:
    """Find the files of a set's images below a local folder; log which rules found some."""
    roots = search_roots(folder)
    found = FoundImages(roots, len(names))
    absent = [i for i, name in enumerate(names) if find_by_own_name(roots, name) is None]
    if absent:
        prefixes = [path_below(folder, root) for root in roots]
        search_index(FileIndex(image_paths(folder)), names, absent, prefixes, found)
        if is_logged:
            found.log_rules(names)
    return found


class ImageFinder:
    """Finds images one by one, where the other names of the set are not known yet.

    A file may fit several names: `find_images` decides which images are used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._roots = search_roots(folder)
        self._index: FileIndex | None = None

    def find(self, name: str) -> Path | None:
        """Return the file with a name or, where there is none, the one file that fits it."""
        path = find_by_own_name(self._roots, name)
        if path is not None:
            return path
        if self._index is None:
            self._index = FileIndex(image_paths(self._folder))
        num_wrapping = path_below(self._folder, self._roots[-1]).count("/")
        row, _, _ = _claim(self._index, name, num_wrapping)
        return None if row is None else self._folder / self._index[row]


def path_below(folder: Path, path: Path) -> str:
    """Return a path below a folder with a slash at its end; '' for the folder itself."""
    return "".join(f"{part}/" for part in path.relative_to(folder).parts)


def search_index(
    index: FileIndex,
    names: Sequence[str],
    absent: Sequence[int],
    prefixes: Sequence[str],
    found: FoundImages,
) -> None:
    """Search the files of the images that no file has the name of.

    Args:
        index: All files.
        names: Those of all images, in the order of the set.
        absent: The images to search.
        prefixes: Folders in which the other images are, each in the one before.
        found: Gets the paths.
    """
    taken = _Taken(names, absent, prefixes)
    num_wrapping = prefixes[-1].count("/")
    owner_F = np.full(len(index), _FREE, dtype=np.int64)
    claimed = array("q")  # image, file and comparison of each claim
    for image in absent:
        row, rule, reason = _claim(index, names[image], num_wrapping)
        if row is None:
            _miss(found, image, reason)
            continue
        claimed.extend((image, row, rule))
        owner = int(owner_F[row])
        if owner == _FREE:
            owner_F[row] = image
        elif owner == _CONTESTED or names[owner] != names[image]:
            owner_F[row] = _CONTESTED
    for start in range(0, len(claimed), 3):
        image, row, rule = claimed[start : start + 3]
        path = index[row]
        if owner_F[row] == _CONTESTED:
            _miss(found, image, f"{shown(path)} is there, but several images fit it")
        elif path in taken:
            _miss(found, image, f"{shown(path)} is there, but another image has that name")
        else:
            found.set_path(image, path, rule)


class _Taken:
    """The files that images have the names of, as 64-bit hashes."""

    def __init__(
        self, names: Sequence[str], absent: Sequence[int], prefixes: Sequence[str]
    ) -> None:
        is_absent_I = np.zeros(len(names), dtype=np.bool_)
        is_absent_I[list(absent)] = True
        hashes = array("q")
        for index in np.flatnonzero(~is_absent_I).tolist():
            path = direct_path(names[index])
            hashes.extend(hash(f"{prefix}{path}") for prefix in prefixes)
        self._hashes = np.sort(np.array(hashes, dtype=np.int64))

    def __contains__(self, path: str) -> bool:
        row = int(np.searchsorted(self._hashes, hash(path)))
        return row < len(self._hashes) and int(self._hashes[row]) == hash(path)


def _miss(found: FoundImages, image: int, reason: str) -> None:
    found.missing.add(image)
    if len(found.reasons) < _MAX_REASONS:
        found.reasons[image] = reason


def _claim(index: FileIndex, name: str, num_wrapping: int) -> tuple[int | None, int, str]:
    """Return the one file that fits a name and the comparison, or why there is none."""
    rows = index.rows_of(search_keys(name)) or index.rows_of(search_keys_in_code_pages(name))
    if len(rows) > _MAX_CANDIDATES:
        return None, 0, f"{len(rows)} files have its last part"
    paths: dict[int, Parts] = {row: tuple(index[row].split("/")) for row in rows}
    # The folders of a path of another machine say nothing about the folders here.
    rules = (fits, has_last_part_of) if direct_path(name) is None else (fits,)
    for fit in rules if rows else ():
        for number, comparison in enumerate(COMPARISONS):
            for form in comparison.name_parts(name):
                fitting = []
                for row, parts in paths.items():
                    compared = comparison.path_parts(parts)
                    if fit(form, compared) or fit(form, compared[num_wrapping:]):
                        fitting.append(row)
                if len(fitting) == 1:
                    return fitting[0], number, ""
                if fitting:
                    two = " and ".join(sorted(shown(index[row]) for row in fitting[:2]))
                    return None, 0, f"{len(fitting)} files fit: {two}"
    return None, 0, _nearly(name, paths)


def _nearly(name: str, paths: dict[int, Parts]) -> str:
    """Say which file is nearly that of a name."""
    last = (direct_path(name) or PurePosixPath(name.replace("\\", "/"))).name
    for parts in paths.values():
        if parts[-1] == last:
            return f"{shown('/'.join(parts))} is there, in another folder"
    for parts in paths.values():
        if without_suffix(parts[-1]) == without_suffix(last):
            return f"{shown('/'.join(parts))} is there, with another suffix"
    if is_url(name):
        return "it is a URL: put the name of the file there"
    return "" if name and len(name) <= MAX_NAME_CHARS else "it is no name of a file"


def image_paths(folder: Path) -> Iterator[str]:
    """Yield the paths of all image files below a folder; hidden ones are left out.

    Links are followed, as a lookup by name does, but no folder is visited twice.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            stat = (folder / prefix).stat()
            if (stat.st_dev, stat.st_ino) in visited:
                continue
            visited.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "__MACOSX")):
                        continue
                    if entry.is_dir():
                        waiting.append(f"{prefix}{entry.name}/")
                    elif is_image_name(entry.name) and entry.is_file():
                        yield prefix + entry.name
        except OSError:  # a folder that may not be read has no files for us
            continue


def is_image_name(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return PurePosixPath(name).suffix.lower().rstrip() in IMAGE_SUFFIXES


def _only_folder_in(folder: Path) -> Path | None:
    """Return the one folder that a folder holds; None if it holds anything else as well."""
    try:
        with os.scandir(folder) as entries:
            first, second = next(entries, None), next(entries, None)
            is_only = first is not None and second is None and first.is_dir()
            return Path(first.path) if first is not None and is_only else None
    except OSError:
        return None
