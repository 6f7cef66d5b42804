"""Opens annotations and images by their URIs and creates the loaders of training and prediction."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mal.data.annotations import CocoBoxes
from mal.data.batch import CropBatch, collate_crops
from mal.data.crop_dataset import ImageReader, TrainingCrops
from mal.data.formats import AUTO, open_annotations
from mal.data.sampler import EpochSampler
from mal.errors import AnnotationError, SpecError
from mal.shown import shown
from mal.spec.experiment import ExperimentSpec
from mal.storage import open_image_folder

log = logging.getLogger(__name__)


def open_image_set(
    annotation_uri: str,
    image_uri: str,
    *,
    key: str,
    with_masks: bool,
    annotation_type: str = AUTO,
) -> ImageReader:
    """Open boxes and images; unusable ones are named once in the log.

    Args:
        annotation_uri: Annotation file or folder, local or remote.
        image_uri: Folder, archive or remote folder.
        key: The start of the spec keys that hold the two, for errors: `dataset.train`.
        with_masks: Read segmentations.
        annotation_type: As `dataset.type`.

    Raises:
        SpecError: A URI is empty.
        AnnotationError: The set cannot be used.
    """
    for name, uri in (("annotations", annotation_uri), ("images", image_uri)):
        if not uri:
            raise SpecError(f"{key} must name its {name}, got ''. Set {_keys_of(key)}.")
    source = open_annotations(annotation_uri, annotation_type, images=image_uri)
    boxes = source.load_boxes(with_masks=with_masks)
    folder = open_image_folder(image_uri)
    reader = ImageReader(boxes, folder)
    if len(reader.missing) == len(boxes.images):
        raise AnnotationError(
            f"{image_uri} holds none of the {len(boxes.images)} images of {annotation_uri} (first: "
            f"{_describe_missing(reader, 0)}). Set {_keys_of(key)}, or fix file_name."
        )
    problems = boxes.problems.copy()
    for index in sorted(reader.missing):
        problems.add("image missing", _describe_missing(reader, index))
    for line in problems.lines():
        log.warning("%s: %s", annotation_uri, line)
    return reader


def _describe_missing(reader: ImageReader, index: int) -> str:
    name, reason = shown(reader.boxes.images[index].file_name), reader.found.reasons.get(index)
    return f"{name}, {reason}" if reason else name


def training_loader(
    crops: Dataset[CropBatch], sampler: EpochSampler, spec: ExperimentSpec
) -> DataLoader[CropBatch]:
    """Return the loader of a training run; the sampler keeps boxes of an image close together."""
    if isinstance(crops, TrainingCrops):  # cached crops need no image
        sampler.pools = crops.image_pools()
    num_workers = spec.dataset.num_workers_per_gpu
    return DataLoader(
        crops,
        batch_size=spec.train.batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_crops,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def prediction_loader(
    crops: Dataset[CropBatch | None], batches: Iterable[list[Any]], *, num_workers: int
) -> DataLoader[CropBatch | None]:
    """Return the loader of evaluation and inference; items of unreadable images are left out.

    Args:
        crops: Prediction crops, of one or several sizes.
        batches: The keys of each batch's items in `crops`.
        num_workers: Number of loader processes.
    """
    return DataLoader(
        crops,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_readable,
        pin_memory=torch.cuda.is_available(),
    )


def collate_readable(items: Sequence[CropBatch | None]) -> CropBatch | None:
    """Join the items whose image is readable; None where there is none."""
    readable = [item for item in items if item is not None]
    return collate_crops(readable) if readable else None


def in_image_order(boxes: CocoBoxes, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort rows so that boxes of one image follow each other: it is then decoded once."""
    return rows[np.argsort(boxes.image_index_N[rows], kind="stable")]


def _keys_of(key: str) -> str:
    if key == "inference":
        return "inference.ann_path and inference.img_dir"
    return f"{key}_ann_path and {key}_img_dir"
