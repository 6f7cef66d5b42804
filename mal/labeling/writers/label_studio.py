"""Label Studio: a list of tasks, with a polygon for each connected part of a mask.

Label Studio's polygons know no holes and no parts: a hole is joined by a bridge, and the parts of
an object are regions of their own, `ID-1`, `ID-2`.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mal import __version__
from mal.artifacts import write_text, writing_atomically
from mal.data.annotations import CocoImage
from mal.labeling.polygons import rings_from_rle
from mal.labeling.writers.objects import ObjectSet, WrittenObject
from mal.labeling.writers.xml_text import xml_attributes

LOCAL_FILES_URL = "/data/local-files/?d="

_DECIMALS = 4


def write_label_studio(
    objects: ObjectSet,
    path: Path,
    *,
    image_url: str = LOCAL_FILES_URL,
    as_predictions: bool = False,
) -> None:
    """Write the tasks, and the labelling interface beside them (`NAME.config.xml`).

    Args:
        objects: The set; an object without a mask is a rectangle.
        path: The JSON file.
        image_url: What is before the name of each image in its URL.
        as_predictions: Write suggestions, which people accept or change.
    """
    write_text(path.with_suffix(".config.xml"), _interface(objects.class_names))
    with writing_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for number, (image, of_image) in enumerate(objects.images(), 1):
            task = _task(image, of_image, image_url, as_predictions=as_predictions)
            # Label Studio's converter reads no task without an id.
            file.write(f"{separator}\n{json.dumps({'id': number} | task)}")
            separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def _task(
    image: CocoImage, objects: Sequence[WrittenObject], image_url: str, *, as_predictions: bool
) -> dict[str, Any]:
    name = urllib.parse.quote(image.file_name, errors="replace")
    regions = [region for each in objects for region in _regions(image, each)]
    result: dict[str, Any] = {"result": regions}
    if as_predictions:
        result["model_version"] = f"mal {__version__}"
    return {
        "data": {"image": f"{image_url}{name}"},
        "predictions" if as_predictions else "annotations": [result],
    }


def _regions(image: CocoImage, each: WrittenObject) -> Iterator[dict[str, Any]]:
    common = {
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
    }
    if each.rle is None:
        x, y, width, height = each.box_xywh
        left, top = _percent((x, y), image)
        wide, high = _percent((width, height), image)
        value: dict[str, Any] = {
            "x": left, "y": top, "width": wide, "height": high, "rotation": 0,
            "rectanglelabels": [each.class_name],
        }  # fmt: skip
        kind = {"type": "rectanglelabels", "from_name": "box", "value": value}
        yield {"id": each.annotation_id, **kind, **common}
        return
    rings = rings_from_rle(each.rle)
    for number, ring in enumerate(rings, 1):
        value = {
            "points": [_percent(point, image) for point in ring],
            "closed": True,
            "polygonlabels": [each.class_name],
        }
        name = each.annotation_id if len(rings) == 1 else f"{each.annotation_id}-{number}"
        kind = {"type": "polygonlabels", "from_name": "mask", "value": value}
        yield {"id": name, **kind, **common}


def _percent(point: tuple[float, float], image: CocoImage) -> list[float]:
    x, y = point
    return [round(100 * x / image.width, _DECIMALS), round(100 * y / image.height, _DECIMALS)]


def _interface(class_names: Sequence[str]) -> str:
    labels = "".join(f"    <Label{xml_attributes(value=name)}/>\n" for name in class_names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <PolygonLabels name="mask" toName="image">\n{labels}  </PolygonLabels>\n'
        f'  <RectangleLabels name="box" toName="image">\n{labels}  </RectangleLabels>\n</View>\n'
    )
