"""`mal.Predictor`: masks for boxes and points of one image in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from mal.data.annotations import CocoBoxes, CocoImage, Problems
from mal.data.crop_dataset import ImageReader
from mal.data.crops import xywh_from_xyxy
from mal.data.points import (
    NO_BOX,
    ON,
    LabelledPoint,
    PointPrompts,
    is_labelled_point,
    parse_points,
)
from mal.errors import MalError
from mal.labeling.box_estimation import BoxEstimator, EstimatedBox, rows_without_box, with_boxes
from mal.labeling.kept_features import KeptFeatures
from mal.labeling.load import load_model_alone, prediction_settings
from mal.labeling.onnx_model import OnnxModel
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel, predict_masks

MAX_KEPT_BOXES = 1000

Boxes = ArrayLike | Sequence[ArrayLike | None]


class Predictor:
    """A trained or exported model that predicts masks as `mal inference` does, also from clicks.

    Windows, thresholds and networks are those of the model's own spec (`inference.*`, `train.*`) or
    of `mal_model.json`.

    The features of the latest crops are kept, so that the same boxes with other points only run the
    decoder. Boxes that were estimated for objects of points only are kept too: points that begin
    with those of an earlier estimate are further clicks on that object, and keep its box while
    those on the object lie inside it. Any other points get a new estimate.

    Args:
        path: A .pth of mal train or a .onnx of mal export, local or s3://, or a result folder.

    Raises:
        MalError: It cannot be loaded, or has no settings for prediction.
    """

    def __init__(self, path: str | Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_model_alone(str(path), device)
        assert isinstance(loaded.model, NetworkEnsemble | OnnxModel)
        self._prompted = KeptFeatures(loaded.model)
        # The whole graph of an exported model is faster than encoder and decoder.
        is_exported = isinstance(loaded.model, OnnxModel)
        self._plain: ProbabilityModel = loaded.model if is_exported else self._prompted
        settings = prediction_settings(loaded.spec, loaded.spec.inference, loaded.crop_size)
        self._settings = dataclasses.replace(settings, num_workers=0)
        self._estimator = BoxEstimator(self._prompted, self._settings, loaded.size_prior)
        # Keys: hash of the image, and the points.
        self._estimated: OrderedDict[tuple[bytes, bytes], NDArray[np.float64]] = OrderedDict()

    def predict(
        self,
        image: NDArray[np.uint8],
        boxes: Boxes | None = None,
        points: Sequence[Any] | NDArray[Any] | None = None,
    ) -> NDArray[np.bool_]:
        """Return a mask for every object.

        Args:
            image: (H, W, 3), uint8, RGB.
            boxes: (N, 4), xyxy in pixels; may reach beyond the image. None, for all or for one of
                them: estimated from the points.
            points: For each object its [[x, y, label], ...] in pixels, label 1 on the object and 0
                off it; None or [] for none. One such list alone is of one object.

        Returns:
            (N, H, W).

        Raises:
            MalError: Image, boxes or points have another shape or type, or points contradict.
        """
        _check_image(image)
        box_xywh_N4, prompts = checked_prompts(boxes, points, image)
        reader: ImageReader = _GivenImage(image, box_xywh_N4, prompts)
        rows = np.arange(len(box_xywh_N4))
        masks_NHW = np.zeros((len(rows), *image.shape[:2]), dtype=np.bool_)
        if not len(rows):
            return masks_NHW
        if len(rows_without_box(reader.boxes)):
            reader = reader.with_boxes(self._with_estimated_boxes(reader, image))
        model = self._plain if prompts is None else self._prompted
        for mask in predict_masks(model, reader, rows, self._settings):
            masks_NHW[mask.index] = coco_mask.decode(mask.rle)  # type: ignore[arg-type]
        return masks_NHW

    def _with_estimated_boxes(self, reader: ImageReader, image: NDArray[np.uint8]) -> CocoBoxes:
        digest = hashlib.blake2b(np.ascontiguousarray(image).data).digest()
        estimates = []
        for row in rows_without_box(reader.boxes).tolist():
            assert reader.boxes.points is not None
            xy_K2, label_K = reader.boxes.points.of(row)
            point_K3 = np.column_stack([xy_K2, label_K])
            box_xywh = self._kept_box(digest, point_K3)
            if box_xywh is None:
                box_xywh = self._estimator.estimate(reader, row).box_xywh
                self._estimated[digest, point_K3.tobytes()] = box_xywh
            estimates.append((row, EstimatedBox(box_xywh, 1.0)))
        while len(self._estimated) > MAX_KEPT_BOXES:
            self._estimated.popitem(last=False)
        return with_boxes(reader.boxes, estimates)

    def _kept_box(self, digest: bytes, point_K3: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the box of the longest known prefix of the points, if it holds the others."""
        for count in range(len(point_K3), 0, -1):
            box_xywh = self._estimated.get((digest, point_K3[:count].tobytes()))
            if box_xywh is not None:
                further_K3 = point_K3[count:]
                on_K2 = further_K3[further_K3[:, 2] == ON, :2]
                return box_xywh if _are_inside(on_K2, box_xywh) else None
        return None


def _are_inside(xy_K2: NDArray[np.float64], box_xywh: NDArray[np.float64]) -> bool:
    near, far = box_xywh[:2], box_xywh[:2] + box_xywh[2:]
    return bool(((xy_K2 >= near) & (xy_K2 <= far)).all())


class _GivenImage(ImageReader):
    """One image in memory in the form of an annotation file."""

    def __init__(
        self,
        image: NDArray[np.uint8],
        box_xywh_N4: NDArray[np.float64],
        points: PointPrompts | None,
    ) -> None:
        height, width = image.shape[:2]
        num_boxes = len(box_xywh_N4)
        self.missing = frozenset()
        self.image = image
        self.boxes = CocoBoxes(
            path=Path("the given objects"),
            images=(CocoImage(0, "the given image", width, height),),
            categories={},
            annotation_position_N=np.arange(num_boxes),
            annotation_id_N=np.arange(num_boxes),
            image_index_N=np.zeros(num_boxes, dtype=np.int64),
            category_id_N=np.zeros(num_boxes, dtype=np.int64),
            box_xywh_N4=box_xywh_N4,
            is_crowd_N=np.zeros(num_boxes, dtype=np.bool_),
            segmentations=None,
            problems=Problems(),
            points=points,
        )

    def __call__(self, _image_index: int) -> NDArray[np.uint8]:
        return self.image


def checked_prompts(
    boxes: Boxes | None,
    points: Sequence[Any] | NDArray[Any] | None,
    image: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], PointPrompts | None]:
    """Return boxes as xywh, NaN where there are none, and the points.

    Raises:
        MalError: They are not what `Predictor.predict` takes.
    """
    if boxes is None and points is None:
        raise MalError("predict needs boxes or points, got neither. Give one of them.")
    points_of_each = [] if points is None else _parse_points_of_each(points, image)
    box_xyxy_N4 = _checked_boxes([None] * len(points_of_each) if boxes is None else boxes)
    if points is None:
        points_of_each = [[] for _ in box_xyxy_N4]
    if len(points_of_each) != len(box_xyxy_N4):
        raise MalError(
            f"points must be a list for each of the {len(box_xyxy_N4)} boxes, got "
            f"{len(points_of_each)}. Give [] for a box without points."
        )
    is_without_box = [math.isnan(x0) for x0, _, _, _ in box_xyxy_N4.tolist()]
    _check_that_each_has_a_point_on_it(points_of_each, np.flatnonzero(is_without_box))
    _check_that_boxes_hold_their_points(box_xyxy_N4, points_of_each)
    box_xywh_N4 = xywh_from_xyxy(box_xyxy_N4)
    if not any(points_of_each):
        return box_xywh_N4, None
    return box_xywh_N4, PointPrompts.from_lists(points_of_each, is_without_box)


def _check_that_each_has_a_point_on_it(
    points_of_each: list[list[LabelledPoint]], without_box: NDArray[np.int64]
) -> None:
    for number in without_box.tolist():
        own = points_of_each[number]
        if not any(label == ON for _, _, label in own):
            raise MalError(
                f"an object without a box must have a point on it, got {own or 'none'} for object "
                f"{number}. Give one with label 1."
            )


def _check_that_boxes_hold_their_points(
    box_xyxy_N4: NDArray[np.float64], points_of_each: list[list[LabelledPoint]]
) -> None:
    """Refuse points on the object outside its box, since a mask ends at its box."""
    for number, own in enumerate(points_of_each):
        x0, y0, x1, y1 = box_xyxy_N4[number].tolist()
        for x, y, label in own:
            if label == ON and (x < x0 or x > x1 or y < y0 or y > y1):  # never of a NaN
                raise MalError(
                    f"points on an object must lie in its box, got ({x:g}, {y:g}) for object "
                    f"{number} of box {[x0, y0, x1, y1]}. Enlarge the box, or give none."
                )


def _parse_points_of_each(
    points: Sequence[Any] | NDArray[Any], image: NDArray[np.uint8]
) -> list[list[LabelledPoint]]:
    listed = _without_numpy(points)
    if not isinstance(listed, list) or any(map(is_labelled_point, listed[:1])):
        listed = [listed]
    height, width = image.shape[:2]
    parsed = []
    for number, value in enumerate(listed):
        own = parse_points(value, f"object {number}")
        for x, y, _ in own:
            if not (0 <= x < width and 0 <= y < height):
                raise MalError(
                    f"points must lie in the image of {width} x {height} px, got ({x:g}, {y:g}) "
                    f"for object {number}. Pass x, y, label in pixels."
                )
        parsed.append(own)
    return parsed


def _without_numpy(value: Any) -> Any:
    """Convert NumPy arrays and numbers to lists and Python numbers, at any depth."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [*map(_without_numpy, value)] if isinstance(value, list | tuple) else value


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


def _checked_boxes(boxes: Boxes) -> NDArray[np.float64]:
    """Return boxes as an array; one that is None is a row of NaN."""
    remedy = "Pass x0, y0, x1, y1 in pixels, a row for each box, or None for one of points."
    listed = _without_numpy(boxes)
    if isinstance(listed, list):
        listed = [NO_BOX if box is None else box for box in listed]
    try:
        box_xyxy_N4 = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MalError(f"boxes must be numbers, got {str(boxes)[:60]}. {remedy}") from error
    if box_xyxy_N4.shape in ((0,), (0, 4)):
        return np.zeros((0, 4))
    if box_xyxy_N4.ndim != 2 or box_xyxy_N4.shape[1] != 4:
        raise MalError(f"boxes must have the shape (N, 4), got {box_xyxy_N4.shape}. {remedy}")
    is_good_N = np.isfinite(box_xyxy_N4).all(1) & (box_xyxy_N4[:, 2:] > box_xyxy_N4[:, :2]).all(1)
    is_good_N |= np.isnan(box_xyxy_N4).all(1)
    if not is_good_N.all():
        row = int(np.flatnonzero(~is_good_N)[0])
        raise MalError(
            f"boxes must have x1 > x0 and y1 > y0, got {box_xyxy_N4[row].tolist()} in row {row}. "
            f"{remedy}"
        )
    return box_xyxy_N4
