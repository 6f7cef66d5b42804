"""Pascal VOC: an XML file for each image."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from mal.data.formats.content import read_head, text_of
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
from mal.errors import AnnotationError
from mal.shown import shown

BAD_OBJECT = "VOC object without a name or a bndbox of four numbers"

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MAX_OBJECTS = 1_000_000
_NUM_LOOKED_AT = 20
_ROOT = re.compile(r"[^<]*(?:<[?!][^>]*>[^<]*)*<annotation[\s>]")


def matches(path: Path) -> bool:
    """Return whether a file, or one of the first XML files of a folder, is VOC."""
    if path.is_file():
        return _is_voc(path)
    return any(_is_voc(file) for file in files_below(path, ".xml")[:_NUM_LOOKED_AT])


def read(path: Path, image_folder: Path) -> AnnotationTable:
    """Read a file, or all XML files of a folder."""
    return table_of_files(files_below(path, ".xml"), path, image_folder, _parse)


def parse_xml(content: bytes) -> ET.Element:
    """Parse XML without a document type, whose entities can fill the memory or read files.

    Raises:
        AnnotationError: The content is not XML, or has a document type.
    """

    def refuse(*_: object) -> NoReturn:
        raise AnnotationError("it has a document type (DTD), which is not read. Delete <!DOCTYPE")

    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise AnnotationError(f"it is not XML: {error}") from error
    return builder.close()


def _is_voc(path: Path) -> bool:
    text = text_of(read_head(path))
    return text.lstrip()[:1] == "<" and bool(_ROOT.match(text))


def _parse(path: Path, parts: Parts) -> ImageAnnotations:
    root = parse_xml(read_bounded(path))
    if root.tag != "annotation":
        raise AnnotationError(f"its first element is <{root.tag[:40]}>, not <annotation>")
    # The sets of the VOC challenge count pixels from 1; tools that write its format from 0.
    origin = 1.0 if "VOC" in (root.findtext("source/database") or "") else 0.0
    said = ImageAnnotations(image_name=(root.findtext("filename") or "").strip())
    try:
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        said.size = (width, height) if min(width, height) > 0 else None
    except ValueError:
        said.size = None  # that of the image file
    for number, element in enumerate(root.findall("object")[:_MAX_OBJECTS], 1):
        row = _object_from(element, origin)
        if row is None:
            parts.left_out.add(BAD_OBJECT, f"object {number} of {shown(parts.name)}")
        else:
            said.objects.append(row)
    return said


def _object_from(element: ET.Element, origin: float) -> ObjectRow | None:
    category = (element.findtext("name") or "").strip()
    try:
        left, top, right, bottom = (
            number_from(element.findtext(f"bndbox/{corner}")) for corner in _CORNERS
        )
    except (TypeError, ValueError):
        return None
    if not category:
        return None
    left, top = left - origin, top - origin
    return ObjectRow((left, top, right - left, bottom - top), category, _polygons_of(element))


def _polygons_of(element: ET.Element) -> list[list[float]]:
    """Return the polygon that some tools add: x1, y1, x2, y2, ..."""
    polygon = element.find("polygon")
    values = {} if polygon is None else {child.tag: child.text for child in polygon}
    flat: list[float] = []
    try:
        while f"x{len(flat) // 2 + 1}" in values:
            number = len(flat) // 2 + 1
            flat += [number_from(values[f"x{number}"]), number_from(values[f"y{number}"])]
    except (KeyError, TypeError, ValueError):
        return []
    return [flat] if len(flat) >= 6 else []


FORMAT = AnnotationFormat("voc", matches, read)
