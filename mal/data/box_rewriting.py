"""Rewrites a COCO file whose boxes are not x, y, width and height in pixels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mal.data.annotation_stream import read_members, write_members
from mal.data.box_readings import BOX_READINGS, FILE_SIZES, SWAPPED_SIZES, BoxReading
from mal.data.ids import Id, exact_id
from mal.data.images import upright_size_of
from mal.errors import AnnotationError
from mal.storage import find_images

REWRITINGS = (*BOX_READINGS, SWAPPED_SIZES, FILE_SIZES)
"""What `rewrite_boxes` takes."""

_Size = tuple[float, float]


def rewrite_boxes(source: Path, target: Path, name: str, image_folder: Path | None = None) -> int:
    """Write a COCO file with the boxes, or the image sizes, that the given ones mean.

    Args:
        source: The COCO file.
        target: The file to write.
        name: One of REWRITINGS.
        image_folder: Local folder of the images, of which `file-sizes` takes the sizes.

    Returns:
        How many boxes or images were rewritten. Entries that cannot be read stay as they are.

    Raises:
        AnnotationError: A file cannot be read.
    """
    if name == FILE_SIZES and image_folder is None:
        raise AnnotationError(f"Cannot rewrite {source} by {name}: give the images with --images.")
    rewriting = _Rewriting(source, BOX_READINGS.get(name), name, image_folder)
    write_members(target, rewriting.members())
    return rewriting.num_rewritten


class _Rewriting:
    def __init__(
        self, source: Path, reading: BoxReading | None, name: str, folder: Path | None
    ) -> None:
        self.num_rewritten = 0
        self._source, self._reading, self._name = source, reading, name
        self._paths: Mapping[str, Path | None] = {}
        self._sizes: dict[Id, _Size] = {}
        for key, _, entries in read_members(source):
            if key == "images" and entries is not None:
                images = [entry.value for entry in entries]
                self._sizes = dict(_sizes_from(images)) if reading is not None else {}
                self._paths = _paths_of(images, folder) if name == FILE_SIZES else {}

    def members(self) -> Iterator[tuple[str, Any]]:
        for key, value, entries in read_members(self._source):
            if entries is None:
                yield key, value
            elif key == "images" and self._reading is None:
                yield key, (self._with_size(entry.value) for entry in entries)
            elif key == "annotations" and self._reading is not None:
                yield key, (self._with_box(entry.value, self._reading) for entry in entries)
            else:
                yield key, (entry.value for entry in entries)

    def _with_box(self, annotation: Any, reading: BoxReading) -> Any:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            box_4 = np.array([float(number) for number in annotation["bbox"]])
            size_2 = np.array(self._sizes[exact_id(annotation["image_id"])])
            if box_4.shape == (4,) and np.isfinite(box_4).all():
                xywh_4 = reading.xywh_px(box_4[None], size_2[None])[0]
                self.num_rewritten += 1
                return annotation | {"bbox": xywh_4.round(3).tolist()}
        return annotation

    def _with_size(self, image: Any) -> Any:
        with contextlib.suppress(KeyError, TypeError, AnnotationError):
            size = (
                (image["height"], image["width"])
                if self._name == SWAPPED_SIZES
                else self._size_of_file(image["file_name"])
            )
            if size is not None:
                self.num_rewritten += 1
                return image | dict(zip(("width", "height"), size, strict=True))
        return image

    def _size_of_file(self, file_name: str) -> tuple[int, int] | None:
        path = self._paths.get(file_name)
        return None if path is None else upright_size_of(path)


def _sizes_from(images: Iterable[Any]) -> Iterator[tuple[Id, _Size]]:
    for image in images:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            size = float(image["width"]), float(image["height"])
            if all(map(math.isfinite, size)):
                yield exact_id(image["id"]), size


def _paths_of(images: Iterable[Any], folder: Path | None) -> dict[str, Path | None]:
    assert folder is not None, "checked by rewrite_boxes"
    named = [image.get("file_name") for image in images if isinstance(image, dict)]
    names = [name for name in named if isinstance(name, str)]
    found = find_images(folder, names)
    return {name: found.path_of(index, name) for index, name in enumerate(names)}
