"""Training and prediction items: one box of one image, cut from its image."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mal.data.annotations import CocoBoxes
from mal.data.batch import CropBatch
from mal.data.crops import (
    Window,
    cut_window,
    prediction_window,
    sample_training_window,
    unit_box_in_window,
    xyxy_from_xywh,
)
from mal.data.image_table import FileNames
from mal.data.images import read_image
from mal.data.points import points_in_unit_window
from mal.data.problems import CROWD_REMEDY
from mal.data.sampler import ImagePools
from mal.data.segmentations import mask_from_rle
from mal.data.transforms import augment_colours
from mal.errors import AnnotationError
from mal.spec.experiment import ExperimentSpec
from mal.storage import find_images

log = logging.getLogger(__name__)

DECODED_IMAGES_MAX_BYTES = 256 << 20
MIN_TRAINED_SIDE_PX = 2
NUM_CHANNELS = 3
NO_TRUE_MASK = "without a true mask"


class ImageReader:
    """Reads the images of a set and keeps the most recently used decoded.

    Attributes:
        missing: Indices of images without a file.
        max_bytes: The most that stays decoded; a single larger image is kept too.
    """

    def __init__(self, boxes: CocoBoxes, folder: Path) -> None:
        self.boxes = boxes
        self.folder = folder
        self.found = find_images(folder, FileNames(boxes.images))
        self.missing = frozenset(self.found.missing)
        self.max_bytes = DECODED_IMAGES_MAX_BYTES
        self._decoded: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._num_bytes = 0

    def with_boxes(self, boxes: CocoBoxes) -> Self:
        """Return a reader of the same images for other boxes in them."""
        reader = copy.copy(self)
        reader.boxes = boxes
        return reader

    def path_of(self, image_index: int) -> Path:
        """Return the path of an image; it need not exist."""
        name = self.boxes.images[image_index].file_name
        return self.found.path_of(image_index, name) or self.folder / name

    def __call__(self, image_index: int) -> NDArray[np.uint8]:
        """Return an image as (H, W, 3) uint8 RGB in the orientation of its boxes.

        Raises:
            AnnotationError: The image is missing, unreadable or of another size.
        """
        if image_index in self._decoded:
            self._decoded.move_to_end(image_index)
            return self._decoded[image_index]
        entry = self.boxes.images[image_index]
        path = self.path_of(image_index)
        image = read_image(path, width=entry.width, height=entry.height)
        self._decoded[image_index] = image
        self._num_bytes += image.nbytes
        while self._num_bytes > self.max_bytes and len(self._decoded) > 1:
            self._num_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return image


class TrainingCrops(Dataset[CropBatch]):
    """Randomly positioned crops around boxes.

    The key of an item is (epoch, position). Its randomness depends on these and the seed alone, so
    that a resumed run, or one with more loader processes, has the same crops.
    """

    def __init__(
        self, reader: ImageReader, indices: NDArray[np.int64], spec: ExperimentSpec, seed: int
    ) -> None:
        self.reader = reader
        self.indices = indices
        self.spec = spec
        self.seed = seed
        if spec.dataset.shuffle_pool_mib:
            reader.max_bytes = spec.dataset.shuffle_pool_mib << 20

    def image_pools(self) -> ImagePools | None:
        """Return the groups of items that are shuffled together, or None for one group of all."""
        max_bytes = self.spec.dataset.shuffle_pool_mib << 20
        image_index_N = self.reader.boxes.image_index_N[self.indices]
        num_bytes_I = self.reader.boxes.image_area_I * NUM_CHANNELS
        if not max_bytes or num_bytes_I[np.unique(image_index_N)].sum() <= max_bytes:
            return None
        return ImagePools(image_index_N, num_bytes_I, max_bytes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> CropBatch:
        """Return a batch of one item. If its image is unreadable, the next box is used instead."""
        epoch, position = key
        rng = np.random.default_rng([self.seed, epoch, position])
        return augment(self.cut_readable(position, rng), self.spec.dataset.photometric_rate, rng)

    def cut_readable(self, position: int, rng: np.random.Generator) -> CropBatch:
        """Cut a clean crop of the box at `position`, or of the next box with a readable image."""
        for offset in range(len(self)):
            index = int(self.indices[(position + offset) % len(self)])
            try:
                return self.cut_clean(index, rng)
            except AnnotationError as error:
                if offset == 0:
                    log.warning("%s is skipped: %s", self.reader.boxes.name_of(index), error)
                last_error = error
        raise last_error

    def cut_clean(self, index: int, rng: np.random.Generator) -> CropBatch:
        """Cut one crop at random for a row of `CocoBoxes`, without augmentation: the teacher's."""
        boxes, spec = self.reader.boxes, self.spec
        box_xyxy = xyxy_from_xywh(boxes.box_xywh_N4[index])
        window = sample_training_window(box_xyxy, spec.dataset, spec.train, rng)
        pixels = self.reader(int(boxes.image_index_N[index]))
        item = crop_around(
            boxes, index, pixels,
            box_xywh=boxes.box_xywh_N4[index], window=window, crop_size=spec.dataset.crop_size,
        )  # fmt: skip
        return dataclasses.replace(item, true_mask_BSS=self._cut_true_mask(index, window))

    def _cut_true_mask(self, index: int, window: Window) -> torch.Tensor | None:
        if self.spec.train.supervision == "box":
            return None
        rle = self.reader.boxes.rle_of(index)
        assert rle is not None, "select_training_boxes leaves out boxes without a mask"
        mask = mask_from_rle(rle) * np.uint8(255)
        if not mask.any():
            raise AnnotationError("its true mask is empty. Delete its segmentation, or draw it.")
        cut = cut_window(mask, window, self.spec.dataset.crop_size)
        return torch.from_numpy(cut > 127).byte()[None]


def augment(item: CropBatch, photometric_rate: float, rng: np.random.Generator) -> CropBatch:
    """Mirror half of the items, and add the student's image with other colours."""
    if rng.uniform() < 0.5:
        item = item.mirrored()
    if photometric_rate == 0:
        return item
    student_CSS = augment_colours(item.image_BCSS[0], photometric_rate, rng)
    return dataclasses.replace(item, student_image_BCSS=student_CSS[None])


class PredictionCrops(Dataset[CropBatch | None]):
    """The fixed crops of evaluation and inference, in the order of the file."""

    def __init__(
        self, reader: ImageReader, indices: NDArray[np.int64], *, crop_size: int, margin_rate: float
    ) -> None:
        self.reader = reader
        self.indices = indices
        self.crop_size = crop_size
        self.margin_rate = margin_rate

    def __len__(self) -> int:
        return len(self.indices)

    def window_of(self, index: int) -> Window:
        """Return the window of a row of `CocoBoxes`."""
        return prediction_window(
            xyxy_from_xywh(self.reader.boxes.box_xywh_N4[index]), self.margin_rate
        )

    def __getitem__(self, position: int) -> CropBatch | None:
        """Return a batch of one item; None, and a log line, if its image is unreadable."""
        index = int(self.indices[position])
        boxes = self.reader.boxes
        window = self.window_of(index)
        image_index = int(boxes.image_index_N[index])
        try:
            image = self.reader(image_index)
        except AnnotationError as error:
            if image_index not in self.reader.missing:  # `open_image_set` names missing images
                log.warning("%s gets an empty mask: %s", boxes.name_of(index), error)
            return None
        return crop_around(
            boxes, index, image,
            box_xywh=boxes.box_xywh_N4[index], window=window, crop_size=self.crop_size,
        )  # fmt: skip


def crop_around(
    boxes: CocoBoxes,
    index: int,
    pixels: NDArray[np.uint8],
    *,
    box_xywh: NDArray[np.float64],
    window: Window,
    crop_size: int,
) -> CropBatch:
    """Cut one crop without augmentation.

    Args:
        boxes: The set.
        index: Row of the object.
        pixels: The decoded image of the object.
        box_xywh: The object's box, or a candidate for it.
        window: The crop in pixels of the image.
        crop_size: Side of the result, px.
    """
    image = boxes.image_of(index)
    box_xyxy = xyxy_from_xywh(box_xywh)
    unit_box = unit_box_in_window(box_xyxy, window, image.width, image.height)
    return CropBatch(
        image_BCSS=_image_tensor(cut_window(pixels, window, crop_size)),
        unit_box_B4=torch.from_numpy(unit_box)[None],
        box_area_B=torch.tensor([box_xywh[2] * box_xywh[3]], dtype=torch.float32),
        index_B=torch.tensor([index]),
        point_BK3=points_in_window(boxes, index, window),
    )


def points_in_window(boxes: CocoBoxes, index: int, window: Window) -> torch.Tensor | None:
    """Return the points of a row in a crop window, (1, K, 3); None where the set has none."""
    if boxes.points is None:
        return None
    return torch.from_numpy(points_in_unit_window(boxes.points, index, window))[None]


def select_training_boxes(reader: ImageReader, spec: ExperimentSpec) -> NDArray[np.int64]:
    """Return the rows to train on: no crowds, an image, inside the size limits of `dataset`.

    Raises:
        AnnotationError: None is left.
    """
    boxes = reader.boxes
    if not len(boxes):
        why = "it has no annotation"
        if boxes.num_unusable:
            why = f"none of its {boxes.num_unusable} annotations is usable"
        raise AnnotationError(
            f"Cannot train on {boxes.path}: {why}. Run mal dataset check to see the reasons."
        )
    left_out = _left_out_boxes(reader, spec)
    keep_N = ~np.any([is_out_N for is_out_N, _ in left_out.values()], axis=0)
    counts = {why: int(is_out_N.sum()) for why, (is_out_N, _) in left_out.items()}
    reasons = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
    if not keep_N.any():
        _, remedy = left_out[max(counts, key=lambda why: counts[why])]
        raise AnnotationError(
            f"Cannot train on {boxes.path}: none of its {len(boxes)} boxes is usable: {reasons}. "
            f"{remedy}"
        )
    if not keep_N.all():
        log.info("%d boxes are not trained on: %s", int((~keep_N).sum()), reasons)
        if counts.get(NO_TRUE_MASK):
            log.info(
                "masks and boxes cannot be trained on together: train.supervision=box trains on "
                "all %d boxes",
                len(boxes),
            )
    return np.flatnonzero(keep_N)


def _left_out_boxes(
    reader: ImageReader, spec: ExperimentSpec
) -> dict[str, tuple[NDArray[np.bool_], str]]:
    """Return which boxes are not trained on, by reason, with what the user can do."""
    boxes, limits = reader.boxes, spec.dataset
    side_N = boxes.box_xywh_N4[:, 2:].min(axis=1, initial=np.inf)
    area_N = boxes.box_area_N
    left_out = {
        "crowds": (
            boxes.is_crowd_N,
            f"Give a set with boxes of single objects. {CROWD_REMEDY}",
        ),
        "without an image": (
            np.isin(boxes.image_index_N, list(reader.missing)),
            "Set dataset.train_img_dir to the folder of the images.",
        ),
        f"with a side of {MIN_TRAINED_SIDE_PX} px or less": (
            side_N <= MIN_TRAINED_SIDE_PX,
            "Annotate larger images.",
        ),
        f"with a side below dataset.min_obj_side {limits.min_obj_side:g}": (
            side_N < limits.min_obj_side,
            "Lower dataset.min_obj_side.",
        ),
        f"of w*h <= dataset.min_obj_size {limits.min_obj_size:g}": (
            area_N <= limits.min_obj_size,
            "Lower dataset.min_obj_size.",
        ),
        f"of w*h >= dataset.max_obj_size {limits.max_obj_size:g}": (
            area_N >= limits.max_obj_size,
            "Raise dataset.max_obj_size.",
        ),
    }
    if boxes.points is not None:
        left_out["of points whose box is uncertain"] = (
            np.isnan(area_N),
            "Draw boxes for more objects: they show how large the objects with points are.",
        )
    if spec.train.supervision == "mask":
        assert boxes.segmentations is not None
        left_out[NO_TRUE_MASK] = (
            ~boxes.segmentations.is_given_N,
            "Set train.supervision=box, which needs no masks, or give a set with masks.",
        )
    return left_out


def _image_tensor(crop: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(crop).permute(2, 0, 1).contiguous()[None]
