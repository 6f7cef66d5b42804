"""YOLO segmentation: a text file for each image, one polygon for each object.

A YOLO object has one polygon without holes. Several parts, and holes, are joined by cuts of no
width, as Ultralytics' own converter joins them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import yaml

from mal.data.annotations import CocoImage
from mal.labeling.polygons import joined, rings_from_rle
from mal.labeling.writers.objects import ObjectSet, WrittenObject
from mal.labeling.writers.output import OutputNames, add_image, safe_name
from mal.storage import find_image

_DECIMALS = 6


def write_yolo(
    objects: ObjectSet, folder: Path, *, image_folder: Path | None, as_boxes: bool = False
) -> None:
    """Write `labels/`, `data.yaml` and, where the images are given, `images/`.

    Args:
        objects: The set.
        folder: An empty folder.
        image_folder: Folder of the images; None leaves `images/` to the user.
        as_boxes: Write `class x y w h`, the labels of detection.
    """
    names = OutputNames()
    for image, of_image in objects.images():
        name = _without_images_folder(image.file_name)
        path = names.path_for(folder / "labels", name, ".txt")
        path.write_text("".join(_lines(of_image, image, as_boxes=as_boxes)), encoding="utf-8")
        source = find_image(image_folder, image.file_name) if image_folder else None
        if source is not None:
            add_image(source, folder / "images" / safe_name(name))
    (folder / "images").mkdir(exist_ok=True)
    classes = dict(enumerate(objects.class_names))
    # Without `path`, Ultralytics looks for the images beside this file.
    text = yaml.safe_dump(
        {"train": "images", "val": "images", "names": classes}, allow_unicode=True, sort_keys=False
    )
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _lines(objects: Iterable[WrittenObject], image: CocoImage, *, as_boxes: bool) -> Iterable[str]:
    for each in objects:
        if as_boxes:
            x, y, width, height = each.box_xywh
            points = [(x + width / 2, y + height / 2), (width, height)]
        elif each.rle is None:
            points = each.corners
        else:
            points = [(float(x), float(y)) for x, y in joined(rings_from_rle(each.rle))]
        numbers = " ".join(
            f"{min(max(value / side, 0.0), 1.0):.{_DECIMALS}f}"
            for point in points
            for value, side in zip(point, (image.width, image.height), strict=True)
        )
        yield f"{each.class_index} {numbers}\n"


def _without_images_folder(file_name: str) -> str:
    """Return the name without folders `images`: Ultralytics replaces the last one by `labels`."""
    *folders, name = safe_name(file_name).parts
    kept = [folder for folder in folders if folder != "images"]
    return str(PurePosixPath(*kept, name))
