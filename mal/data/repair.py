"""`mal dataset check --fix`: writes the part of a set that a run uses, in the form it is read.

Every rule is that of the reader: what it leaves out is dropped, and what it reads in another way
than it is written is written so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mal.artifacts import writing_atomically
from mal.data.annotation_columns import AnnotationColumns, name_id_of
from mal.data.annotation_stream import Entry, read_members, write_members
from mal.data.annotations import CocoBoxes, CocoImage
from mal.data.box_evidence import MISPLACED
from mal.data.check import CheckReport
from mal.data.image_table import ImageTable, lookup_of
from mal.data.points import is_without_box
from mal.data.problems import NOTE_KINDS, Problems
from mal.data.segmentations import area_of, file_has_changed, is_segmentation_given
from mal.errors import AnnotationError
from mal.shown import shown

CHANGES_SUFFIX = ".changes.jsonl"

_MAX_SHOWN_CHARS = 400
_NOT_READABLE = "its image file is missing or cannot be read"
_UNUSABLE_IMAGE = "image that cannot be used"
_ABSENT = object()


def write_repaired(report: CheckReport, path: Path) -> str:
    """Write the usable part of a set that was checked, and a line of JSON for every change.

    Args:
        report: The result of the check.
        path: The COCO file to write. The changes are beside it, `NAME.changes.jsonl`.

    Returns:
        One line about what was changed.

    Raises:
        AnnotationError: Nothing of the set can be used, or the file has changed.
    """
    if report.boxes is None or report.is_readable_I is None or not report.num_usable_boxes:
        raise AnnotationError(
            f"Cannot write {path}: no part of the set can be used. Fix the errors above first."
        )
    if MISPLACED in report.errors:
        raise AnnotationError(
            f"Cannot write {path}: the boxes are not what they seem. Convert them first, as the "
            "error above says."
        )
    with (
        writing_atomically(path.with_suffix(CHANGES_SUFFIX)) as temporary,
        temporary.open("w", encoding="utf-8") as log,
    ):
        repair = _Repair(report.boxes, report.is_readable_I, log)
        write_members(path, repair.members())
    return repair.line()


class _Repair:
    def __init__(self, boxes: CocoBoxes, is_readable_I: Any, log: TextIO) -> None:
        self.boxes = boxes
        self.is_readable_I = is_readable_I
        self._log = log
        self._lookup = lookup_of(boxes.images)
        self._counts: Counter[str] = Counter()
        self._written_images: set[int] = set()
        ids = [id_ for id_ in boxes.annotation_id_N.tolist() if isinstance(id_, int)]
        self._next_id = max(ids, default=0) + 1
        self._used_ids: set[Any] = set()

    def line(self) -> str:
        """Say how many entries were dropped and changed."""
        parts = [f"{count:,} {words}" for words, count in sorted(self._counts.items())]
        return ", ".join(parts) or "nothing had to be changed"

    def members(self) -> Iterator[tuple[str, Any]]:
        for key, value, entries in read_members(self.boxes.path):
            if entries is None:
                yield key, value
            elif key == "images":
                yield key, self._images(entries)
            elif key == "annotations":
                yield key, self._annotations(entries)
            else:
                yield key, (entry.value for entry in entries)

    def _images(self, entries: Iterable[Entry]) -> Iterator[Any]:
        for position, entry in enumerate(entries):
            name, image = f"images[{position}]", entry.value
            index = self._lookup.find_value(image.get("id")) if isinstance(image, dict) else -1
            if index < 0:
                self._drop("images", name, image, _UNUSABLE_IMAGE)
            elif not self.is_readable_I[index]:
                self._drop("images", name, image, _NOT_READABLE)
            elif index in self._written_images:
                self._drop("images", name, image, "image given before")
            else:
                self._written_images.add(index)
                known = self.boxes.images[index]
                fields = {
                    "id": known.id,
                    "file_name": known.file_name,
                    "width": known.width,
                    "height": known.height,
                }
                yield self._with(name, image, fields)

    def _annotations(self, entries: Iterable[Entry]) -> Iterator[Any]:
        boxes, row = self.boxes, 0
        for position, entry in enumerate(entries):
            name = f"annotations[{position}]"
            if row < len(boxes) and boxes.annotation_position_N[row] == position:
                if not isinstance(entry.value, dict):
                    raise file_has_changed(boxes.path)
                if self.is_readable_I[boxes.image_index_N[row]]:
                    yield self._with(name, entry.value, self._fields_of(row, position, entry))
                else:
                    self._drop("annotations", name, entry.value, _NOT_READABLE)
                row += 1
            else:
                self._drop("annotations", name, entry.value, self._reason(position, entry))
        if row < len(boxes):
            raise file_has_changed(boxes.path)

    def _fields_of(self, row: int, position: int, entry: Entry) -> dict[str, Any]:
        """Return the fields of a usable annotation, as they are read."""
        annotation, image = entry.value, self.boxes.image_of(row)
        fields: dict[str, Any] = {
            "id": self._unique_id(name_id_of(annotation, position)),
            "image_id": image.id,
            "category_id": int(self.boxes.category_id_N[row]),
            "iscrowd": int(self.boxes.is_crowd_N[row]),
        }
        if not is_without_box(annotation):
            fields["bbox"] = _cropped(self.boxes.box_xywh_N4[row].tolist(), image)
        if is_segmentation_given(annotation.get("segmentation")) and not self._has_mask(row):
            fields["segmentation"] = _ABSENT
        points = self.boxes.points
        if annotation.get("points") and (points is None or not points.count_of(row)):
            fields["points"] = _ABSENT
        return fields

    def _unique_id(self, given: Any) -> Any:
        if given in self._used_ids:
            given = self._next_id
            self._next_id += 1
        self._used_ids.add(given)
        return given

    def _has_mask(self, row: int) -> bool:
        try:
            rle = self.boxes.rle_of(row)
        except AnnotationError:
            return False
        return rle is not None and bool(area_of(rle))

    def _reason(self, position: int, entry: Entry) -> str:
        """Return why the reader leaves an annotation out: it is read again, alone."""
        problems, images = Problems(), ImageTable()
        columns = AnnotationColumns(self.boxes.path, refuse_points=False)
        columns.add(position, entry, problems)
        if len(columns.position):
            found, _ = columns.image_id.found_in(self._lookup)
            images.append(self.boxes.images[max(0, int(found[0]))])
            columns.usable_rows(np.minimum(found, 0), images, self.boxes.categories, problems)
        kinds = [kind for kind in problems if kind not in NOTE_KINDS]
        return kinds[0] if kinds else "annotation without a box or a point on the object"

    def _with(self, name: str, entry: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        """Return an entry with these fields; each that differs is logged."""
        changed = dict(entry)
        for key, value in fields.items():
            old = entry.get(key, _ABSENT)
            if value is _ABSENT:
                changed.pop(key, None)
            elif _is_equal(old, value):
                continue
            elif old is _ABSENT and value == 0 and key == "iscrowd":
                continue  # the default
            else:
                changed[key] = value
            self._counts[f"{key} changed"] += 1
            self._write(name, entry, change="set", field=key, old=old, new=value)
        return changed

    def _drop(self, kind: str, name: str, entry: Any, reason: str) -> None:
        self._counts[f"{kind} dropped"] += 1
        self._write(name, entry, change="dropped", reason=reason)

    def _write(self, name: str, entry: Any, **change: Any) -> None:
        line: dict[str, Any] = {"entry": name}
        if isinstance(entry, dict) and "id" in entry:
            line["id"] = shown(entry["id"])
        for key, value in change.items():
            line[key] = _for_log(value) if key in ("old", "new") else value
        self._log.write(f"{json.dumps(line)}\n")


def _cropped(box_xywh: list[float], image: CocoImage) -> list[float]:
    x, y, width, height = box_xywh
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, image.width), min(y + height, image.height)
    if (left, top) == (x, y) and right == x + width and bottom == y + height:
        return box_xywh
    return [round(value, 3) for value in (left, top, right - left, bottom - top)]


def _is_equal(old: Any, new: Any) -> bool:
    """Whether a value is the same and of the same kind: '1' is not 1, and 1.0 is."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_equal, old, new))
    if isinstance(old, bool) or isinstance(old, str) != isinstance(new, str):
        return False
    return bool(old == new)


def _for_log(value: Any) -> Any:
    return None if value is _ABSENT else shown(value, _MAX_SHOWN_CHARS)
