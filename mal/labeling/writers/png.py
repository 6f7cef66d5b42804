"""Masks as PNG files: one for each object, or one of all classes for each image."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mal.labeling.coco_rle import area_of_rle, window_from_rle
from mal.labeling.writers.objects import Empty, ObjectSet, WrittenObject
from mal.labeling.writers.output import OutputNames, safe_name

_MAX_BYTE_CLASS = 255
_INSIDE = 255


def write_instance_pngs(objects: ObjectSet, folder: Path) -> None:
    """Write `masks/IMAGE/ANNOTATION.png` (0 and 255) and `masks.csv`, which names what each is."""
    num_uses: Counter[str] = Counter()
    with (folder / "masks.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("mask", "file_name", "annotation_id", "category"))
        for image, of_image in objects.images():
            for each in of_image:
                name = str(safe_name(f"{image.file_name}/{each.annotation_id}"))
                num_uses[name.casefold()] += 1
                again = num_uses[name.casefold()]  # files may give an id twice
                path = folder / "masks" / (f"{name}.png" if again == 1 else f"{name}-{again}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.zeros((image.height, image.width), dtype=np.uint8)
                _paint(pixels, each, _INSIDE, objects.empty)
                Image.fromarray(pixels).save(path)
                rows.writerow(
                    (
                        path.relative_to(folder).as_posix(),
                        _csv_text(image.file_name),
                        each.annotation_id,
                        _csv_text(each.class_name),
                    )
                )


def write_semantic_pngs(objects: ObjectSet, folder: Path) -> None:
    """Write `masks/IMAGE.png` (0: none, n: the n-th class) and `classes.csv`.

    Smaller objects are painted over larger ones. 16 bits a pixel are used for over 255 classes.
    """
    class_names = objects.class_names
    depth = np.uint8 if len(class_names) <= _MAX_BYTE_CLASS else np.uint16
    with (folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("value", "class"))
        rows.writerows(
            (number, _csv_text(name)) for number, name in enumerate(["background", *class_names])
        )
    names = OutputNames()
    for image, of_image in objects.images():
        pixels = np.zeros((image.height, image.width), dtype=depth)
        for each in sorted(of_image, key=_area_of, reverse=True):
            _paint(pixels, each, each.class_index + 1, objects.empty)
        Image.fromarray(pixels).save(names.path_for(folder / "masks", image.file_name, ".png"))


def _area_of(each: WrittenObject) -> float:
    return each.box_xywh[2] * each.box_xywh[3] if each.rle is None else area_of_rle(each.rle)


def _paint(pixels: NDArray[np.generic], each: WrittenObject, value: int, empty: Empty) -> None:
    if each.rle is None:
        if empty is Empty.BOX:
            x, y, width, height = each.box_xywh
            x0, y0, x1, y1 = (round(side) for side in (x, y, x + width, y + height))
            pixels[y0:y1, x0:x1] = value
        return
    mask_HW, (left, top) = window_from_rle(each.rle)
    height, width = mask_HW.shape
    pixels[top : top + height, left : left + width][mask_HW] = value


def _csv_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
