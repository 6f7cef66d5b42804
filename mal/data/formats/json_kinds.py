"""Names JSON files that look like annotations and are no COCO instance files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from mal.data.annotation_stream import read_members
from mal.data.formats.content import Outline, are_json_lines, outline_of
from mal.errors import AnnotationError

_COCO_KEYS = ("images", "annotations", "categories", "info", "licenses")
_MAX_SHOWN = 60
_NUM_SHOWN_KEYS = 6

_KNOWN: Sequence[tuple[Callable[[Outline], bool], str, str]] = (
    (
        lambda o: o.has("[{", "image_id") and o.has_any("[{", "bbox", "segmentation", "keypoints"),
        "a list of detections (COCO results) without the images",
        'It needs the images: {"images": [...], "categories": [...], "annotations": [it]}.',
    ),
    (
        lambda o: o.has_any("{", "_via_img_metadata", "_via_settings", "_via_attributes")
        or o.has("{{", "filename", "regions")
        or o.has("[{", "filename", "regions"),
        "a project of VIA (VGG Image Annotator), without the lists 'images' and 'annotations'",
        "Export it as COCO in VIA (Annotation > Export Annotations as COCO).",
    ),
    (
        lambda o: o.has("[{", "image", "annotations") and o.has("[{[{", "coordinates"),
        "a CreateML file",
        "Export it as COCO.",
    ),
    (
        lambda o: o.has("{", "item") and o.has("{", "annotations"),
        "a Darwin (V7) file",
        "Export it as COCO.",
    ),
    (
        lambda o: o.has("{", "dm_format_version") or o.has("{", "items", "categories"),
        "a Datumaro file",
        "Export it as COCO: datum convert -f coco_instances.",
    ),
    (
        lambda o: o.has_any("{", "data_row", "samples", "dataset_info") or o.has("[{", "data_row"),
        "an export of another tool (Labelbox or FiftyOne)",
        "Export it as COCO.",
    ),
    (
        lambda o: o.has("{", "objects", "size"),
        "a Supervisely file",
        "Export it as COCO.",
    ),
    (
        lambda o: o.has("{", "type", "features"),
        "a GeoJSON file",
        "Export it as COCO, in pixels.",
    ),
)  # fmt: skip


def is_coco_text(text: str) -> bool:
    """Return whether a JSON text begins as a COCO file, or as an object of unknown keys."""
    return text.lstrip()[:1] == "{" and outline_of(text).has_any("{", "images", "annotations")


def refuse_other_json(path: Path, text: str, *, is_whole: bool) -> None:
    """Raise an error for the text, or the beginning of it, that cannot be a COCO file.

    Raises:
        AnnotationError: With what the file is, and what to do.
    """
    first = text.lstrip()[:1]
    if first not in ("{", "["):
        raise AnnotationError(_not_json(path, text))
    if are_json_lines(text):
        raise AnnotationError(
            f"Cannot use {path} as a COCO file: it is JSON Lines, one JSON value on each line; "
            'JSON Lines is not COCO. Write one object: {"images": [...], "annotations": [...]}.'
        )
    outline = outline_of(text)
    if first == "{" and outline.has_any("{", "images", "licenses"):
        return
    for is_this, what, remedy in _KNOWN:
        if is_this(outline):
            raise AnnotationError(f"Cannot use {path} as a COCO file: it is {what}. {remedy}")
    if first == "[":
        keys = ", ".join(f"{key[:_MAX_SHOWN]!a}" for key in sorted(outline.keys.get("[{", ())))
        raise AnnotationError(
            f"Cannot use {path} as a COCO file: it holds a JSON list"
            f"{f' of objects with {keys[:200]}' if keys else ''}, not an object with 'images' and "
            "'annotations'. Give a COCO instance file."
        )
    keys_of = outline.keys.get("{")
    if is_whole and keys_of and not outline.has_any("{", *_COCO_KEYS):
        shown = ", ".join(f"{key[:_MAX_SHOWN]!a}" for key in sorted(keys_of)[:_NUM_SHOWN_KEYS])
        raise AnnotationError(
            f"Cannot use {path} as a COCO file: it has the keys {shown}, and no lists 'images' and "
            "'annotations'. Export it as COCO instances."
        )


def is_panoptic(path: Path) -> bool:
    """Return whether the annotations of a COCO file are segments of a panoptic image."""
    for key, _, entries in read_members(path):
        if key == "annotations" and entries is not None:
            return any(
                isinstance(entry.value, dict) and "segments_info" in entry.value
                for entry in islice(entries, 100)
            )
    return False


def _not_json(path: Path, text: str) -> str:
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    if path.suffix.lower() == ".csv" or line.count(",") >= 3:
        what, remedy = (
            "a table (CSV)",
            "Convert it to COCO, or see docs/extending/annotation_format.md",
        )
    elif line.startswith("<"):
        what, remedy = "XML, but not VOC", "Export it as COCO or VOC"
    else:
        what = f"not JSON; it begins with {line[:_MAX_SHOWN]!a}"
        remedy = (
            "Give COCO JSON, or a format of dataset.type (voc, yolo, labelme, labelstudio, kitti)"
        )
    return f"Cannot use {path} as annotations: it is {what}. {remedy}."
