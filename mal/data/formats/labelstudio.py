"""Label Studio's own JSON: a list of tasks, boxes in percent of the image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mal.data.formats.brush_rle import mask_from_brush
from mal.data.formats.content import Outline, outline_of, read_head, text_of
from mal.data.formats.image_files import box_around, number_from
from mal.data.formats.image_names import find_named_images
from mal.data.formats.table import AnnotationFormat, AnnotationTable, BoxRow, ImageRow
from mal.data.images import upright_size_of
from mal.data.problems import Problems
from mal.errors import AnnotationError
from mal.shown import shown
from mal.storage.image_search import is_image_name

NO_IMAGE = "Label Studio task whose image is not in the folder"
TWO_TASKS = "image of several Label Studio tasks, none of them used"
BAD_RESULT = "Label Studio result without usable numbers"
TURNED_IMAGE = "Label Studio result on an image that was turned in the editor"
UNLABELLED = "Label Studio result without a label"
NOT_FINISHED = "Label Studio task without a submitted annotation, left out"
SEVERAL = "Label Studio task with several annotations, the latest is used"
TURNED_BOX = "turned rectangle, the upright box around it is used"
OTHER_KIND = "Label Studio result that has no area, left out"

_KINDS = {
    "rectangle": "rectanglelabels",
    "polygon": "polygonlabels",
    "brush": "brushlabels",
    "ellipse": "ellipselabels",
}
_WITHOUT_AREA = ("keypoint", "choices", "relation", "textarea", "rating", "number", "taxonomy",
                 "vector", "datetime", "pairwise", "labels")  # fmt: skip
_MIN_POLYGON_NUMBERS = 6
_PERCENT = 100.0


def is_labelstudio(outline: Outline) -> bool:
    """Return whether a JSON file has the keys of Label Studio's tasks."""
    for inside in ("[{", "{"):
        if outline.has_any("{", "images", "categories"):
            return False
        if outline.has(inside, "data") and outline.has_any(
            inside, "annotations", "predictions", "completions", "file_upload"
        ):
            return True
    return outline.has_any("[{", "annotation_id", "annotator") and outline.has_any(
        "[{", "lead_time"
    )


def matches(path: Path) -> bool:
    """Return whether a file is an export of Label Studio."""
    return path.is_file() and is_labelstudio(outline_of(text_of(read_head(path))))


def read(path: Path, image_folder: Path) -> AnnotationTable:
    """Read the tasks of an export (JSON or JSON-MIN)."""
    content = json.loads(path.read_bytes())
    tasks = [content] if isinstance(content, dict) else content
    if not isinstance(tasks, list):
        raise AnnotationError(f"{path} must hold a list of tasks. Export it again, or as COCO.")
    return _Reader(image_folder).read(tasks)


class _Reader:
    def __init__(self, image_folder: Path) -> None:
        self.folder = image_folder
        self.left_out, self.notes = Problems(), Problems()

    def read(self, tasks: Sequence[Any]) -> AnnotationTable:
        uris = [_image_uri_of(task) if isinstance(task, dict) else "" for task in tasks]
        found = find_named_images(self.folder, [_name_from_uri(uri) for uri in uris])
        results: dict[str, list[list[Any]]] = {}
        for number, (task, uri, image) in enumerate(zip(tasks, uris, found, strict=True), 1):
            has_id = isinstance(task, dict) and "id" in task
            name = f"task {shown(task['id'])}" if has_id else f"[{number}]"
            if not isinstance(task, dict):
                self.left_out.add("Label Studio task that is no object", name)
                continue
            result = self._results_of(task, name)
            if image is None:
                given = shown(_name_from_uri(uri)) if uri else "no image"
                self.left_out.add(NO_IMAGE, f"{name} ({given})", "Or export it as COCO.")
            elif result is not None:
                results.setdefault(image, []).append(result)
        images: list[ImageRow] = []
        boxes: list[BoxRow] = []
        for image, several in results.items():
            if len(several) > 1:
                self.left_out.add(TWO_TASKS, f"{shown(image)} ({len(several)} tasks)")
                continue
            try:
                size = upright_size_of(self.folder / image)
            except AnnotationError as error:
                self.left_out.add(NO_IMAGE, f"{shown(image)} ({shown(str(error))})")
                continue
            images.append(ImageRow(image, *size))
            for row in self._rows_of(several[0], image, size):
                boxes.append(row._replace(id=len(boxes) + 1))
        return AnnotationTable(images, boxes, (), self.left_out, self.notes)

    def _results_of(self, task: Mapping[str, Any], name: str) -> list[Any] | None:
        """Return the results of the annotation that counts; None for an unfinished task."""
        if "data" not in task:  # JSON-MIN: one annotation, its results under the tags' names
            return [
                {"value": value, **value}
                for values in task.values()
                if isinstance(values, list)
                for value in values
                if isinstance(value, dict)
            ]
        given = task.get("annotations", task.get("completions"))
        done = [
            one
            for one in (given if isinstance(given, list) else [])
            if isinstance(one, dict)
            and not one.get("was_cancelled")
            and not one.get("skipped")
            and isinstance(one.get("result"), list)
        ]
        if not done:
            self.notes.add(NOT_FINISHED, name)
            return None
        if len(done) > 1:
            self.notes.add(SEVERAL, name)
        best = max(enumerate(done), key=lambda pair: (*_rank_of(pair[1]), pair[0]))[1]
        return list(best["result"])

    def _rows_of(
        self, results: Sequence[Any], image: str, size: tuple[int, int]
    ) -> Iterator[BoxRow]:
        for number, result in enumerate(results, 1):
            where = f"result {number} of {shown(image)}"
            value = result.get("value") if isinstance(result, dict) else None
            if not isinstance(value, dict):
                self.left_out.add(BAD_RESULT, where)
                continue
            kind = next((kind for kind, key in _KINDS.items() if key in value), "")
            if not kind:
                self._leave_out_other(str(result.get("type", "")), where)
                continue
            labels = value[_KINDS[kind]]
            category = str(labels[0]).strip() if isinstance(labels, list) and labels else ""
            if not category:
                self.left_out.add(UNLABELLED, where)
            elif result.get("image_rotation"):
                self.left_out.add(TURNED_IMAGE, where)
            else:
                try:
                    yield self._row_from(kind, result, image, category, size)
                except (ValueError, TypeError, LookupError, OverflowError) as error:
                    self.left_out.add(BAD_RESULT, f"{where} ({shown(str(error))})")

    def _leave_out_other(self, kind: str, where: str) -> None:
        if kind.startswith(_WITHOUT_AREA) or not kind:
            self.notes.add(OTHER_KIND, f"{where} ({shown(kind)})")
        else:
            self.left_out.add(UNLABELLED, f"{where} ({shown(kind)})")

    def _row_from(
        self, kind: str, result: Mapping[str, Any], image: str, category: str, size: tuple[int, int]
    ) -> BoxRow:
        value = result["value"]
        if kind == "brush":
            box, segmentation = _brush_from(value, result, size)
            return BoxRow(0, image, box, category, segmentation=segmentation)
        scale = (size[0] / _PERCENT, size[1] / _PERCENT)

        def pixels(*keys: str) -> list[float]:
            return [number_from(value[key]) * scale[axis] for axis, key in enumerate(keys)]

        if kind == "polygon":
            flat = [
                number_from(number) * scale[axis]
                for point in value["points"]
                for axis, number in enumerate(point[:2])
            ]
            if len(flat) < _MIN_POLYGON_NUMBERS:
                raise ValueError("a polygon of less than three points")
            return BoxRow(0, image, box_around([flat]), category, segmentation=[flat])
        angle = math.radians(number_from(value.get("rotation") or 0))
        x, y = pixels("x", "y")
        if kind == "ellipse":
            radius_x, radius_y = pixels("radiusX", "radiusY")
            half_x = math.hypot(radius_x * math.cos(angle), radius_y * math.sin(angle))
            half_y = math.hypot(radius_x * math.sin(angle), radius_y * math.cos(angle))
            return BoxRow(0, image, (x - half_x, y - half_y, 2 * half_x, 2 * half_y), category)
        if angle:
            self.notes.add(TURNED_BOX, f"{shown(image)} ({shown(value['rotation'])} degrees)")
        width, height = pixels("width", "height")
        return BoxRow(0, image, _turned_box(x, y, width, height, angle), category)


def _turned_box(x: float, y: float, width: float, height: float, angle: float) -> Sequence[float]:
    """Return the upright box around a rectangle that is turned about its first corner."""
    if not angle:
        return (x, y, width, height)
    cos, sin = math.cos(angle), math.sin(angle)
    flat = [
        value
        for dx, dy in ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
        for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)
    ]
    return box_around([flat])


def _brush_from(
    value: Mapping[str, Any], result: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Sequence[float], dict[str, Any]]:
    """Return the box and the RLE of a brush mask."""
    from pycocotools import mask as coco_mask

    # JSON-MIN has the size beside the mask.
    width, height = (
        int(result.get(key) or value[key]) for key in ("original_width", "original_height")
    )
    if (width, height) != size:
        raise ValueError(f"a mask of {width} x {height}, and the image has {size[0]} x {size[1]}")
    mask = mask_from_brush(value["rle"], height, width)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("an empty mask")
    left, top = float(columns[0]), float(rows[0])
    box = (left, top, float(columns[-1] + 1) - left, float(rows[-1] + 1) - top)
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return box, {"size": [height, width], "counts": text}


def _rank_of(annotation: Mapping[str, Any]) -> tuple[bool, str]:
    when = annotation.get("updated_at") or annotation.get("created_at") or ""
    return bool(annotation.get("ground_truth")), str(when)


def _image_uri_of(task: Mapping[str, Any]) -> str:
    data = task.get("data", task)
    if not isinstance(data, dict):
        return ""
    texts = [data.get("image"), *data.values()]
    for text in texts:
        if isinstance(text, str) and is_image_name(_name_from_uri(text)):
            return text
    return next((text for text in texts[:1] if isinstance(text, str)), "")


def _name_from_uri(uri: str) -> str:
    """Return the path of an image without server, query and their secrets."""
    try:
        parts = urlsplit(uri)
        if parts.path.endswith("local-files/"):  # /data/local-files/?d=folder/a.png
            return parse_qs(parts.query).get("d", [""])[0]
    except ValueError:
        return ""
    if parts.scheme or parts.netloc or uri.startswith("/data/"):
        return unquote(parts.path).removeprefix("/")
    return uri


FORMAT = AnnotationFormat("labelstudio", matches, read)
