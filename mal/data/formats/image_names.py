"""Finds the image of an annotation file, by the name that it gives or by its own name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mal.errors import AnnotationError
from mal.storage import find_image
from mal.storage.image_folder import IMAGE_SUFFIXES

# Names of folders that part images from annotations; the rest of two paths is the same.
_PARTING = frozenset(
    {"images", "labels", "annotations", "jpegimages", "image_2", "label_2", "img", "ann"}
)


_MAX_PARTS = 20


class ImageNames:
    """The images of a folder, each found by exactly one annotation file.

    Args:
        folder: The local image folder.
        annotation_files: All annotation files, relative to their folder: a name that two of them
            have finds no image, because it could be that of the other.
    """

    def __init__(self, folder: Path, annotation_files: Iterable[PurePosixPath] = ()) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                path = Path(parent) / name
                if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    self._by_stem[path.stem].append(path.relative_to(folder).as_posix())
        self._num_files_of_stem: dict[str, int] = defaultdict(int)
        for file in annotation_files:
            self._num_files_of_stem[_stem_of(file)] += 1

    def named(self, name: str) -> str | None:
        """Return the path in the folder of an image that a file names; None where it is not.

        The name may begin with folders of another machine: its end is tried, the longest first.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(max(0, len(parts) - _MAX_PARTS), len(parts)):
            candidate = "/".join(parts[start:])
            try:
                path = find_image(self._folder, candidate)
            except (AnnotationError, OSError, ValueError):  # it is absolute, or far too long
                continue
            if path is not None:
                return self._relative(path, candidate)
        return None

    def beside(self, file: PurePosixPath) -> str | None:
        """Return the image with the name of an annotation file; None unless exactly one has it.

        `labels/train/a.txt` belongs to `images/train/a.png`, also where the image folder is
        `images/train` itself.
        """
        found = self._by_stem.get(_stem_of(file), [])
        wanted = _shared_parts(file.with_name(_stem_of(file)))
        same = [name for name in found if self._full_parts(name)[-len(wanted) :] == wanted]
        if len(same) == 1:
            return same[0]
        is_only = len(found) == 1 and self._num_files_of_stem[_stem_of(file)] <= 1
        return found[0] if is_only and not same else None

    def _full_parts(self, name: str) -> tuple[str, ...]:
        path = PurePosixPath(self._folder.absolute().as_posix()) / name
        return _shared_parts(path.with_name(path.stem))

    def _relative(self, path: Path, name: str) -> str:
        try:
            return path.relative_to(self._folder).as_posix()
        except ValueError:
            return name


def _stem_of(file: PurePosixPath) -> str:
    """Return a file's name without its suffix; `a.png.txt` belongs to `a.png`."""
    stem = PurePosixPath(file.name).stem
    inner = PurePosixPath(stem)
    return inner.stem if inner.suffix.lower() in IMAGE_SUFFIXES else stem


def _shared_parts(path: PurePosixPath) -> tuple[str, ...]:
    return tuple(part for part in path.parts if part.lower() not in _PARTING)
