"""CVAT for images 1.1: an XML file with a mask for each object, holes and parts included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mal.artifacts import writing_atomically
from mal.labeling.coco_rle import window_from_rle
from mal.labeling.writers.objects import ObjectSet, WrittenObject
from mal.labeling.writers.xml_text import xml_attributes, xml_text


def write_cvat(objects: ObjectSet, path: Path) -> None:
    """Write `annotations.xml`; an object without a mask is a box."""
    with writing_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        )
        file.write("<meta><task><labels>\n")
        for name in objects.class_names:
            file.write(
                f"<label><name>{xml_text(name)}</name><type>any</type><attributes></attributes>"
                "</label>\n"
            )
        file.write("</labels></task></meta>\n")
        for index, (image, of_image) in enumerate(objects.images()):
            attributes = xml_attributes(
                id=index, name=image.file_name, width=image.width, height=image.height
            )
            file.write(f"<image{attributes}>\n")
            file.writelines(_shapes(of_image))
            file.write("</image>\n")
        file.write("</annotations>\n")


def _shapes(objects: list[WrittenObject]) -> Iterator[str]:
    for each in objects:
        common = {"label": each.class_name, "source": "auto", "occluded": 0}
        if each.rle is None:
            x, y, width, height = each.box_xywh
            corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
            yield f"<box{xml_attributes(**common, **corners, z_order=0)}></box>\n"
            continue
        mask_HW, (left, top) = window_from_rle(each.rle)
        height_px, width_px = mask_HW.shape
        window = {"left": left, "top": top, "width": width_px, "height": height_px}
        runs = ", ".join(map(str, _runs_by_row(mask_HW)))
        yield f"<mask{xml_attributes(**common, rle=runs, **window, z_order=0)}></mask>\n"


def _runs_by_row(mask_HW: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> list[int]:
    """Return the run lengths row by row, outside first: CVAT's order, not COCO's."""
    flat = mask_HW.ravel()
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs: list[int] = np.diff([0, *borders.tolist(), len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs
