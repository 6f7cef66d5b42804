"""Finds the image of an annotation file, by the name that it gives or by its own name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from mal.storage import find_images
from mal.storage.image_search import image_paths, is_image_name

# Names of folders that part images from annotations; the rest of two paths is the same.
_PARTING = frozenset(
    {"images", "labels", "annotations", "jpegimages", "image_2", "label_2", "img", "ann"}
)


def find_named_images(folder: Path, names: Sequence[str]) -> list[str | None]:
    """Return the paths in the folder of the images that files name; None for '' and where none is.

    The names are compared with all others: a file that several may mean is none of theirs.
    """
    found = find_images(folder, names)
    paths = (found.path_of(index, name) if name else None for index, name in enumerate(names))
    return [None if path is None else path.relative_to(folder).as_posix() for path in paths]


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
        for path in image_paths(folder):
            self._by_stem[PurePosixPath(path).stem].append(path)
        self._num_files_of_stem: dict[str, int] = defaultdict(int)
        for file in annotation_files:
            self._num_files_of_stem[_stem_of(file)] += 1

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


def _stem_of(file: PurePosixPath) -> str:
    """Return a file's name without its suffix; `a.png.txt` belongs to `a.png`."""
    stem = PurePosixPath(file.name).stem
    inner = PurePosixPath(stem)
    return inner.stem if is_image_name(stem) else stem


def _shared_parts(path: PurePosixPath) -> tuple[str, ...]:
    return tuple(part for part in path.parts if part.lower() not in _PARTING)
