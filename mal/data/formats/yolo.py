"""YOLO: a text file for each image, a line for each object; boxes and yolo-seg polygons."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mal.data.formats.content import is_yolo_text, read_head, text_of
from mal.data.formats.image_files import (
    ImageAnnotations,
    ObjectRow,
    Parts,
    box_around,
    files_below,
    number_from,
    read_bounded,
    table_of_files,
)
from mal.data.formats.table import AnnotationFormat, AnnotationTable
from mal.errors import AnnotationError
from mal.shown import shown

BAD_LINE = "YOLO line without a class number and a box or polygon of numbers"
NOT_FRACTIONS = "YOLO line whose numbers are no fractions of the image"
UNKNOWN_CLASS = "YOLO class number without a name"
TURNED_BOXES = "turned box (YOLO OBB): the upright box around it is used"

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_FILES = (
    "classes.txt",
    "obj.names",
    "labels.txt",
    "_darknet.labels",
    "predefined_classes.txt",
)
_NOT_LABELS = re.compile(
    r"(classes|labels|predefined_classes|train|val|valid|test|notes|requirements|license"
    r"|readme.*|.*_list)\.txt",
    re.IGNORECASE,
)
_BOX_COLUMNS, _SCORED_BOX_COLUMNS = 5, 6
_MIN_POLYGON_COLUMNS = 7
_TURNED_BOX_COLUMNS = 9
_MAX_FRACTION = 1.0 + 1e-3
_NUM_LOOKED_AT = 50


@dataclass
class _Classes:
    """The names of a set's classes, and what its lines hold beside the box."""

    names: Sequence[str] | None = None
    has_keypoints: bool = False
    quads: list[tuple[str, int]] = field(default_factory=list)
    has_other_polygons: bool = False


def matches(path: Path) -> bool:
    """Return whether a file or a folder has YOLO labels; their data.yaml stands for the folder."""
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return bool(re.search(r"(?m)^names\s*:", text_of(read_head(path))))
    return any(
        is_yolo_text(text_of(read_head(file))) for file in _label_files(path)[:_NUM_LOOKED_AT]
    )


def read(path: Path, image_folder: Path) -> AnnotationTable:
    """Read a file, or all label files of a folder."""
    is_yaml = path.suffix.lower() in (".yaml", ".yml") and path.is_file()
    root = path.parent if is_yaml else path
    classes = _classes_of(path if is_yaml else None, root)
    parse = functools.partial(_parse, classes=classes)
    table = table_of_files(
        _label_files(root), root, image_folder, parse, categories=classes.names or ()
    )
    # A set of segments has polygons of many corners; four in every line are turned boxes.
    if classes.quads and not classes.has_other_polygons:
        for name, number in classes.quads:
            table.notes.add(TURNED_BOXES, f"{name}, line {number}")
        boxes = [row._replace(segmentation=None) for row in table.boxes]
        return replace(table, boxes=boxes)
    return table


def _label_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".txt" else []
    return [file for file in files_below(path, ".txt") if not _NOT_LABELS.fullmatch(file.name)]


def _classes_of(given: Path | None, root: Path) -> _Classes:
    """Read the names of the classes from the nearest file that has them."""
    folder = root if root.is_dir() else root.parent
    # Above a folder `labels`, or `train/labels`, lies the set's own folder.
    near = [folder, folder.parent, folder.parent.parent]
    yamls = [given] if given else [parent / name for parent in near for name in _YAML_NAMES]
    for path in yamls:
        if path.is_file():
            return _classes_from_yaml(path)
    for path in (parent / name for parent in near[:2] for name in _CLASS_FILES):
        if path.is_file():
            text = read_bounded(path).decode("utf-8-sig", "replace")
            return _Classes([line.strip() for line in text.splitlines() if line.strip()] or None)
    return _Classes()


def _classes_from_yaml(path: Path) -> _Classes:
    import yaml

    try:
        content = yaml.safe_load(read_bounded(path).decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AnnotationError(f"Cannot read {path} as YAML: {str(error)[:200]}. Fix it.") from error
    if not isinstance(content, Mapping):
        raise AnnotationError(f"{path} must map names of keys to values. Fix it.")
    return _Classes(_names_from(content.get("names"), path), bool(content.get("kpt_shape")))


def _names_from(names: Any, path: Path) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, Mapping):
        by_number = {int(number): str(name) for number, name in names.items()}
        if sorted(by_number) != list(range(len(by_number))):
            # Numbers with gaps: the name of a missing one is its number.
            last = max(by_number, default=-1)
            if last > 100_000 or min(by_number, default=0) < 0:
                raise AnnotationError(f"{path}: names has the class {last}. Number them from 0.")
            return [by_number.get(number, str(number)) for number in range(last + 1)]
        return [by_number[number] for number in range(len(by_number))]
    if isinstance(names, list):
        return [str(name) for name in names]
    raise AnnotationError(f"{path}: names must be a list, got {str(names)[:60]!r}. Fix it.")


def _parse(path: Path, parts: Parts, *, classes: _Classes) -> ImageAnnotations:
    said = ImageAnnotations(is_fraction=True)
    for number, line in enumerate(read_bounded(path).decode("utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        where = f"{shown(parts.name)}, line {number}"
        try:
            class_number = float(columns[0])
            if not class_number.is_integer() or class_number < 0:
                raise ValueError
            row = _row_from([number_from(value) for value in columns[1:]], classes)
        except (ValueError, OverflowError):
            parts.left_out.add(BAD_LINE, f"{where}: {shown(line)}")
            continue
        category = _name_of(int(class_number), classes)
        if category is None:
            parts.left_out.add(UNKNOWN_CLASS, f"{where}: class {int(class_number)}")
        elif not _are_fractions(row):
            parts.left_out.add(NOT_FRACTIONS, f"{where}: {shown(line)}")
        else:
            _note_polygon(row, classes, parts.name, number)
            said.objects.append(row._replace(category=category))
    return said


def _row_from(values: list[float], classes: _Classes) -> ObjectRow:
    num_columns = len(values) + 1
    if num_columns in (_BOX_COLUMNS, _SCORED_BOX_COLUMNS) or classes.has_keypoints:
        centre_x, centre_y, width, height = values[:4]
        return ObjectRow((centre_x - width / 2, centre_y - height / 2, width, height), "")
    if num_columns < _MIN_POLYGON_COLUMNS or num_columns % 2 == 0:
        raise ValueError
    return ObjectRow(box_around([values]), "", [values])


def _note_polygon(row: ObjectRow, classes: _Classes, name: str, number: int) -> None:
    if row.polygons:
        if len(row.polygons[0]) + 1 == _TURNED_BOX_COLUMNS:
            classes.quads.append((name, number))
        else:
            classes.has_other_polygons = True


def _are_fractions(row: ObjectRow) -> bool:
    if row.polygons:
        return all(1 - _MAX_FRACTION <= v <= _MAX_FRACTION for v in row.polygons[0])
    left, top, width, height = row.box_xywh
    centre = (left + width / 2, top + height / 2)
    return all(0 <= v <= _MAX_FRACTION for v in (*centre, width, height))


def _name_of(class_number: int, classes: _Classes) -> str | None:
    if classes.names is None:
        return str(class_number)
    return classes.names[class_number] if class_number < len(classes.names) else None


FORMAT = AnnotationFormat("yolo", matches, read)
