"""Gathers from an annotation file and its images whether its boxes are read as they are meant."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal.data.annotation_columns import AnnotationColumns
from mal.data.box_readings import MAX_TESTED_BOXES, Doubt, doubt_by_file_sizes, find_doubt
from mal.data.image_table import CocoImage, ImageTable
from mal.data.images import upright_size_of
from mal.data.problems import Problems
from mal.data.segmentations import Segmentations, box_of_segmentation
from mal.errors import AnnotationError, StorageError
from mal.storage import find_images, open_image_folder

MISPLACED = "set with misplaced boxes or segmentations"
DOUBTFUL = "set whose boxes or segmentations may be misplaced"

_MAX_SEGMENTATIONS = 200
_MAX_FILES = 20
# Objects of real sets lie everywhere: only a set that keeps to a corner is compared with its files.
_MAX_REACH_OF_CORNER = 0.85


def add_doubt(doubt: Doubt, path: Path, problems: Problems, *, refuse: bool) -> None:
    """Add a doubt to the problems of a set.

    Raises:
        AnnotationError: The doubt is certain, and `refuse` is set.
    """
    if doubt.is_certain and refuse:
        raise AnnotationError(f"Cannot use {path}: {doubt}")
    problems.add(MISPLACED if doubt.is_certain else DOUBTFUL, str(doubt))


def find_doubt_of_columns(
    columns: AnnotationColumns, image_index_N: NDArray[np.int64], images: ImageTable
) -> Doubt | None:
    """Test how the boxes and some segmentations of a file fit, before any box is left out.

    Args:
        columns: All annotations that could be parsed.
        image_index_N: Index of each annotation's image; -1 where the file does not list it.
        images: The images of the file.
    """
    box_N4 = columns.box_xywh_N4()
    rows = np.flatnonzero((image_index_N >= 0) & np.isfinite(box_N4).all(axis=1))
    rows = rows[:: max(1, len(rows) // MAX_TESTED_BOXES)]
    size_N2 = images.size_I2[image_index_N[rows]]
    start_N, num_bytes_N = (np.asarray(each)[rows] for each in (columns.start, columns.num_bytes))
    segmentations = Segmentations(columns.path, start_N, num_bytes_N)
    segment_xywh_N4 = np.full((len(rows), 4), np.nan)
    given = np.flatnonzero(segmentations.is_given_N)
    for index in given[:: max(1, len(given) // _MAX_SEGMENTATIONS)].tolist():
        with contextlib.suppress(AnnotationError):  # a problem of its own
            segment_xywh_N4[index] = box_of_segmentation(segmentations[index])
    return find_doubt(box_N4[rows], size_N2, segment_xywh_N4)


def find_doubt_of_files(
    box_xywh_N4: NDArray[np.float64],
    image_index_N: NDArray[np.int64],
    images: Sequence[CocoImage],
    image_source: str,
) -> Doubt | None:
    """Test whether the boxes are those of files that are smaller than annotated.

    Args:
        box_xywh_N4: NaN for annotations with points only.
        image_index_N: Index into `images`.
        images: The images of the file.
        image_source: Folder or archive of the files; opened only for a set that may be such.
    """
    rows = np.flatnonzero(np.isfinite(box_xywh_N4).all(axis=1))
    rows = rows[:: max(1, len(rows) // MAX_TESTED_BOXES)]
    annotated = [images[index] for index in image_index_N[rows].tolist()]
    size_N2 = np.array([(image.width, image.height) for image in annotated]).reshape(-1, 2)
    reach_N2 = (box_xywh_N4[rows, :2] + box_xywh_N4[rows, 2:]) / size_N2
    if not len(rows) or reach_N2.max() > _MAX_REACH_OF_CORNER:
        return None
    rates = []
    with contextlib.suppress(StorageError):  # whoever reads the images reports it
        folder = open_image_folder(image_source)
        some = images[:: max(1, len(images) // _MAX_FILES)][:_MAX_FILES]
        found = find_images(folder, [image.file_name for image in some], is_logged=False)
        paths = [found.path_of(index, image.file_name) for index, image in enumerate(some)]
        rates = [
            rate
            for image, path in zip(some, paths, strict=True)
            if path is not None and (rate := _file_rate(image, path)) is not None
        ]
    return doubt_by_file_sizes(box_xywh_N4[rows], size_N2, np.array(rates))


def _file_rate(image: CocoImage, path: Path) -> float | None:
    """Return the width of an image file as a share of the annotated width; None: no image."""
    with contextlib.suppress(AnnotationError):
        return upright_size_of(path)[0] / image.width
    return None
