"""Count the new, changed and removed boxes between two annotation files.

Two hashes stand for a box: a million boxes take 16 MB, and a gigabyte as Python objects. N is the
number of boxes of a file.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mal.artifacts import writing_atomically
from mal.data.entry_values import file_name_of, is_crowd_of
from mal.data.ids import AMBIGUOUS, UNKNOWN, IdError, IdLookup, exact_id
from mal.data.problems import FieldError
from mal.errors import ArtifactError
from mal.registry.json_stream import stream_entries

_HASH_BYTES = 8
_MAX_ID = 1 << 64


@dataclass(frozen=True)
class BoxIndex:
    """The boxes of a file.

    Attributes:
        identity_N: The id of each annotation, or its hash if it is not a number.
        content_N: Hash of file name, category name, bbox, points and crowd. Ids of images and
            categories are left out, because tools renumber them on every export.
    """

    identity_N: NDArray[np.uint64]
    content_N: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.identity_N)

    @classmethod
    def empty(cls) -> Self:
        """Return the index of no boxes."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def write(self, path: Path) -> None:
        """Write the index as .npz."""
        buffer = io.BytesIO()
        np.savez(buffer, identity_N=self.identity_N, content_N=self.content_N)
        with writing_atomically(path) as temporary:
            temporary.write_bytes(buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of `write`.

        Raises:
            ArtifactError: The file has another content.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["identity_N"], arrays["content_N"])
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{path} is not an index of boxes. Delete it and run again."
            ) from error


@dataclass(frozen=True)
class BoxChanges:
    """How many boxes differ between two files."""

    num_new: int
    num_changed: int
    num_removed: int

    def __str__(self) -> str:
        return f"{self.num_new} new, {self.num_changed} changed, {self.num_removed} removed boxes"


def index_boxes(path: Path) -> tuple[BoxIndex, list[str]]:
    """Read the boxes of a COCO file and the file names of its images.

    Raises:
        AnnotationError: The file is not JSON.
    """
    file_names = _Names(path, "images", lambda image: file_name_of(image)[0])
    categories = _Names(path, "categories", lambda category: str(category.get("name")))
    identities, contents = array("Q"), array("Q")
    for position, entry in enumerate(_entries(path, "annotations")):
        identities.append(_identity_of(entry.get("id", position + 1)))
        contents.append(_hash(_content_of(entry, file_names, categories)))
    index = BoxIndex(np.array(identities, np.uint64), np.array(contents, np.uint64))
    return index, list(dict.fromkeys(file_names.all))


class _Names:
    """The names of images or categories by id."""

    def __init__(self, path: Path, key: str, name_of: Callable[[Mapping[str, Any]], str]) -> None:
        self.all: list[str] = []
        self._lookup = IdLookup()
        for entry in _entries(path, key):
            try:
                one, name = exact_id(entry.get("id")), name_of(entry)
            except (IdError, FieldError):
                continue
            known = self._lookup.find(one) if one in self._lookup else UNKNOWN
            is_other = known == AMBIGUOUS or (known >= 0 and self.all[known] != name)
            self._lookup.add(one, AMBIGUOUS if is_other else len(self.all))
            self.all.append(name)

    def of(self, value: Any) -> str | None:
        """Return the name for an id; None for no name or several."""
        index = self._lookup.find_value(value)
        return self.all[index] if index >= 0 else None


def count_changes(before: BoxIndex, after: BoxIndex) -> BoxChanges:
    """Count the differences.

    Boxes of equal content are the same box, whatever their ids: files are often renumbered. Of the
    other boxes, those with an id in both files have changed.
    """
    removed = before.identity_N[~_is_matched(before.content_N, after.content_N)]
    added = after.identity_N[~_is_matched(after.content_N, before.content_N)]
    num_changed = len(np.intersect1d(removed, added))
    return BoxChanges(len(added) - num_changed, num_changed, len(removed) - num_changed)


def _is_matched(own_N: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the values that also occur in `other`, each value as often as it occurs there."""
    order = np.argsort(own_N, kind="stable")
    in_order = own_N[order]
    rank = np.arange(len(own_N)) - np.searchsorted(in_order, in_order, side="left")
    other = np.sort(other)
    num_partners = np.searchsorted(other, in_order, "right") - np.searchsorted(other, in_order)
    is_matched_N = np.empty(len(own_N), np.bool_)
    is_matched_N[order] = rank < num_partners
    return is_matched_N


def _entries(path: Path, key: str) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in stream_entries(path, key) if isinstance(entry, dict))


def _content_of(entry: Mapping[str, Any], file_names: _Names, categories: _Names) -> object:
    category = entry.get("category_id")
    points = entry.get("points") or None
    return (
        file_names.of(entry.get("image_id")),
        categories.of(category) or str(category),
        _as_floats(entry.get("bbox")),
        [*map(_as_floats, points)] if isinstance(points, list) else points,
        _is_crowd(entry),
    )


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    try:
        return is_crowd_of(entry)
    except FieldError:
        return True


def _as_floats(values: Any) -> Any:
    """Convert numbers, so that 10 equals 10.0; return anything else unchanged."""
    try:
        return [*map(float, values)]
    except (TypeError, ValueError, OverflowError):
        return values


def _identity_of(coco_id: Any) -> int:
    try:
        one = exact_id(coco_id)
    except IdError:
        return _hash(coco_id)
    return one if isinstance(one, int) and 0 <= one < _MAX_ID else _hash(one)


def _hash(value: object) -> int:
    digest = hashlib.blake2b(repr(value).encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "little")
