"""KITTI: a text file for each image, a line for each object with its class and 14 numbers."""

from __future__ import annotations

from pathlib import Path

from mal.data.formats.content import is_kitti_text, read_head, text_of
from mal.data.formats.image_files import (
    ImageAnnotations,
    ObjectRow,
    Parts,
    files_below,
    number_from,
    read_bounded,
    table_of_files,
)
from mal.data.formats.table import AnnotationFormat, AnnotationTable
from mal.shown import shown

BAD_LINE = "KITTI line without a class and 14 or 15 numbers"
DONT_CARE_NOTE = "KITTI region DontCare, left out"

_DONT_CARE = "dontcare"
_NUM_COLUMNS = (15, 16)
_NUM_LOOKED_AT = 50


def matches(path: Path) -> bool:
    """Return whether a file, or one of the first text files of a folder, is KITTI."""
    files = [file for file in files_below(path, ".txt") if file.suffix.lower() == ".txt"]
    return any(is_kitti_text(text_of(read_head(file))) for file in files[:_NUM_LOOKED_AT])


def read(path: Path, image_folder: Path) -> AnnotationTable:
    """Read a file, or all text files of a folder."""
    return table_of_files(files_below(path, ".txt"), path, image_folder, _parse)


def _parse(path: Path, parts: Parts) -> ImageAnnotations:
    said = ImageAnnotations()
    for number, line in enumerate(read_bounded(path).decode("utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        if columns[0].lower() == _DONT_CARE:
            parts.notes.add(DONT_CARE_NOTE, f"{shown(parts.name)}, line {number}")
            continue
        try:
            if len(columns) not in _NUM_COLUMNS:
                raise ValueError
            left, top, right, bottom = map(number_from, columns[4:8])
        except ValueError:
            parts.left_out.add(BAD_LINE, f"{shown(parts.name)}, line {number}: {shown(line)}")
            continue
        said.objects.append(ObjectRow((left, top, right - left, bottom - top), columns[0]))
    return said


FORMAT = AnnotationFormat("kitti", matches, read)
