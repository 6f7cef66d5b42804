"""`mal.Predictor`: masks of the boxes of one image in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from mal.data.annotations import CocoBoxes, CocoImage, Problems
from mal.data.crop_dataset import ImageReader
from mal.errors import MalError
from mal.labeling.load import load_model_alone, prediction_settings
from mal.labeling.predictor import predict_masks


class Predictor:
    """A trained or exported model, ready to label boxes as `mal inference` does.

    Windows, thresholds and the choice of networks are those the model was trained (`inference.*`,
    `train.*` of its spec) or exported (`mal_model.json`) with.

    Args:
        path: A .pth of mal train or a .onnx of mal export, local or s3://, or a result folder.

    Raises:
        MalError: It cannot be loaded, or does not say how it wants to be used.
    """

    def __init__(self, path: str | Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model_alone(str(path), device)
        self._model = loaded.model
        settings = prediction_settings(loaded.spec, loaded.spec.inference, loaded.crop_size)
        self._settings = dataclasses.replace(settings, num_workers=0)

    def predict(self, image: NDArray[np.uint8], boxes: ArrayLike) -> NDArray[np.bool_]:
        """Return a mask for every box.

        Args:
            image: (H, W, 3), uint8, RGB.
            boxes: (N, 4), xyxy in pixels; may reach beyond the image.

        Returns:
            (N, H, W).

        Raises:
            MalError: Image or boxes have another shape or type.
        """
        _check_image(image)
        box_xyxy_N4 = _checked_boxes(boxes)
        reader = _GivenImage(image, box_xyxy_N4)
        rows = np.arange(len(box_xyxy_N4))
        masks_NHW = np.zeros((len(rows), *image.shape[:2]), dtype=np.bool_)
        if len(rows):
            for mask in predict_masks(self._model, reader, rows, self._settings):
                masks_NHW[mask.index] = coco_mask.decode(mask.rle)  # type: ignore[arg-type]
        return masks_NHW


class _GivenImage(ImageReader):
    """An annotation file of one image that never was on a disk."""

    def __init__(self, image: NDArray[np.uint8], box_xyxy_N4: NDArray[np.float64]) -> None:
        height, width = image.shape[:2]
        num_boxes = len(box_xyxy_N4)
        corner_N2, far_N2 = box_xyxy_N4[:, :2], box_xyxy_N4[:, 2:]
        self.image = image
        self.boxes = CocoBoxes(
            path=Path("the given boxes"),
            images=(CocoImage(0, "the given image", width, height),),
            categories={},
            annotation_position_N=np.arange(num_boxes),
            annotation_id_N=np.arange(num_boxes),
            image_index_N=np.zeros(num_boxes, dtype=np.int64),
            category_id_N=np.zeros(num_boxes, dtype=np.int64),
            box_xywh_N4=np.concatenate([corner_N2, far_N2 - corner_N2], axis=1),
            is_crowd_N=np.zeros(num_boxes, dtype=np.bool_),
            segmentations=None,
            problems=Problems(),
        )

    def __call__(self, _image_index: int) -> NDArray[np.uint8]:
        return self.image


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        got = type(image).__name__
    elif image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        got = f"{image.dtype} of shape {image.shape}"
    else:
        return
    raise MalError(
        f"image must be a uint8 array of shape (H, W, 3), got {got}. "
        "Pass RGB pixels, such as np.asarray(Image.open(path).convert('RGB'))."
    )


def _checked_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    remedy = "Pass x0, y0, x1, y1 in pixels, a row for each box."
    try:
        box_xyxy_N4 = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MalError(f"boxes must be numbers, got {str(boxes)[:60]}. {remedy}") from error
    if box_xyxy_N4.shape in ((0,), (0, 4)):
        return np.zeros((0, 4))
    if box_xyxy_N4.ndim != 2 or box_xyxy_N4.shape[1] != 4:
        raise MalError(f"boxes must have the shape (N, 4), got {box_xyxy_N4.shape}. {remedy}")
    is_good_N = np.isfinite(box_xyxy_N4).all(1) & (box_xyxy_N4[:, 2:] > box_xyxy_N4[:, :2]).all(1)
    if not is_good_N.all():
        row = int(np.flatnonzero(~is_good_N)[0])
        raise MalError(
            f"boxes must have x1 > x0 and y1 > y0, got {box_xyxy_N4[row].tolist()} in row {row}. "
            f"{remedy}"
        )
    return box_xyxy_N4
