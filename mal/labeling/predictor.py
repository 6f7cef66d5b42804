"""Crops to masks of whole images: the one path of measuring, inference and `mal.Predictor`.

Shape letters: B items, S crop side (px), M side of the mask map, H W image or window height and
width, N boxes.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mal.data.annotations import CocoBoxes, CocoImage
from mal.data.batch import CropBatch, mirror_unit_box, normalize_image
from mal.data.crop_dataset import ImageReader, PredictionCrops
from mal.data.crops import Window, xyxy_from_xywh
from mal.data.datamodule import prediction_loader
from mal.labeling.coco_rle import empty_rle, rle_from_window_mask
from mal.labeling.connected import keep_largest_part
from mal.labeling.crop_plan import BatchPlan, SizedCrops
from mal.labeling.map_resize import resize_map
from mal.labeling.masks import (
    BELOW_THRESHOLD,
    MISSING_IMAGE,
    NO_PIXEL,
    UNREADABLE_IMAGE,
    InstanceMask,
)
from mal.model.network import MALNetwork, SharedBackbones, size_class_of
from mal.model.precision import chosen_precision
from mal.model.prompt import refine_by_points

log = logging.getLogger(__name__)

ProbabilityModel = Callable[..., Tensor]
"""(image [B, 3, S, S], unit box [B, 4], box area [B][, points [B, K, 3]]) -> prob [B, M, M].

Points are given only where the set has any. The image is uint8 RGB on the host, a quarter of what
its normalised values take: a model moves it to its device and normalises it there.
"""

_HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PredictionSettings:
    """How boxes are cut and masks are made of probabilities.

    Attributes:
        margin_rate: `train.test_margin_rate[0]`: margin of the prediction window.
        thresholds: One, or three for small, medium and large boxes.
        keep_largest_part: Drop all but the largest connected part of a mask.
        batch_size: Boxes per forward pass.
        crop_sizes: Each box gets the one that suits its window; empty: `crop_size` for all.
    """

    crop_size: int
    margin_rate: float
    thresholds: Sequence[float]
    keep_largest_part: bool = False
    batch_size: int = 1
    num_workers: int = 0
    crop_sizes: Sequence[int] = ()

    def threshold_of(self, box_area_px2: float) -> float:
        """Return the threshold of a box by its size."""
        if len(self.thresholds) == 1:
            return self.thresholds[0]
        return self.thresholds[int(size_class_of(torch.tensor(box_area_px2)))]


def half_type(precision: str, *, use_amp: bool, device: torch.device) -> torch.dtype | None:
    """Return what autocast computes in, or None for float32; see `chosen_precision`."""
    return _HALF_TYPES.get(chosen_precision(precision, use_amp=use_amp, device=device))


def normalized_on(device: torch.device, image_BCSS: Tensor) -> Tensor:
    """Move crops to a device and normalise them there, unless they are normalised already."""
    image_BCSS = image_BCSS.to(device, non_blocking=True)
    return normalize_image(image_BCSS) if image_BCSS.dtype == torch.uint8 else image_BCSS


class NetworkEnsemble:
    """One or two networks, optionally with flip test, as a probability model.

    Args:
        networks: Student, teacher or both; a backbone that both share runs once.
        use_flip: Average with the mirrored crop.
        device: The networks are moved there.
        autocast_type: bfloat16 or float16; None: float32.
        thresholds: Lowest probabilities of a mask pixel; points are corrected beyond them.
    """

    def __init__(
        self,
        networks: Sequence[MALNetwork],
        *,
        use_flip: bool,
        device: torch.device,
        autocast_type: torch.dtype | None = None,
        thresholds: Sequence[float] = (0.5,),
    ) -> None:
        self.networks = [
            network.to(device).to(memory_format=torch.channels_last).eval() for network in networks
        ]
        self.backbones = SharedBackbones.among(self.networks)
        self.use_flip = use_flip
        self.device = device
        self.autocast_type = autocast_type
        self.thresholds = min(thresholds), max(thresholds)

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the first network."""
        backbone: nn.Module = self.networks[0].backbone
        return backbone

    def __call__(
        self,
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return the mean probability, (B, M, M)."""
        return self.decode(self.encode(image_BCSS), unit_box_B4, box_area_B, point_BK3)

    @torch.inference_mode()
    def encode(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the image and each network's feature maps; with flip test, of both views.

        Networks that share a backbone share the tensors of its feature maps.
        """
        image = normalized_on(self.device, image_BCSS)
        encoded: list[Tensor] = []
        with self._autocast():
            for view in [image, image.flip(3)] if self.use_flip else [image]:
                encoded.append(view)
                for feature_maps in self.backbones.encode_each(self.networks, view):
                    encoded += feature_maps
        return encoded

    @torch.inference_mode()
    def decode(
        self,
        encoded: Sequence[Tensor],
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return the mean probability, (B, M, M), of what `encode` returned."""
        unit_box = unit_box_B4.to(self.device, non_blocking=True)
        num_views = 2 if self.use_flip else 1
        size = len(encoded) // num_views
        with self._autocast():
            # The areas stay on the host: by them the network groups the items.
            prob_BMM = self._mean_probability(encoded[:size], unit_box, box_area_B)
            if self.use_flip:
                mirrored = self._mean_probability(
                    encoded[size:], mirror_unit_box(unit_box), box_area_B
                )
                prob_BMM = (prob_BMM + mirrored.flip(2)) / 2
        if point_BK3 is None:
            return prob_BMM
        deepest = encoded[self._num_feature_maps]
        return refine_by_points(
            prob_BMM, deepest, point_BK3.to(self.device, non_blocking=True), self.thresholds
        )

    @property
    def _num_feature_maps(self) -> int:
        return len(self.networks[0].backbone.feature_channels)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_type)

    def _mean_probability(
        self, encoded: Sequence[Tensor], unit_box: Tensor, area: Tensor
    ) -> Tensor:
        image, *feature_maps = encoded
        total = torch.zeros((), device=self.device)
        for number, network in enumerate(self.networks):
            own = feature_maps[number * self._num_feature_maps :][: self._num_feature_maps]
            total = total + network.decode(own, image, unit_box, area).float().sigmoid()
        return total / len(self.networks)


def predict_masks(
    model: ProbabilityModel,
    reader: ImageReader,
    indices: NDArray[np.int64],
    settings: PredictionSettings,
) -> Iterator[InstanceMask]:
    """Yield the mask of every row of `indices`, each exactly once, in their order.

    A box whose image is missing or broken gets an empty mask of score 0.
    """
    crops_of_size = {
        size: PredictionCrops(reader, indices, crop_size=size, margin_rate=settings.margin_rate)
        for size in settings.crop_sizes or [settings.crop_size]
    }
    plan = BatchPlan(crops_of_size, settings.batch_size)
    num_workers = min(settings.num_workers, len(indices) // settings.batch_size)
    loader = prediction_loader(SizedCrops(crops_of_size), plan, num_workers=num_workers)
    found: dict[int, InstanceMask] = {}
    next_position = 0
    for items, batch in zip(plan, loader, strict=True):
        rows = [int(indices[position]) for _, position in items]
        found |= {row: _mask_without_image(reader, row) for row in rows}
        if batch is not None:
            found |= _masks_of_batch(model, batch, crops_of_size[items[0][0]], settings)
        while next_position < len(indices) and int(indices[next_position]) in found:
            yield found.pop(int(indices[next_position]))
            next_position += 1


def _masks_of_batch(
    model: ProbabilityModel, batch: CropBatch, crops: PredictionCrops, settings: PredictionSettings
) -> dict[int, InstanceMask]:
    points = () if batch.point_BK3 is None else (batch.point_BK3,)
    prob = model(batch.image_BCSS, batch.unit_box_B4, batch.box_area_B, *points)
    prob_BMM = prob.float().cpu().numpy()
    return {
        int(row): _mask_of_box(prob_MM, int(row), crops, settings)
        for prob_MM, row in zip(prob_BMM, batch.index_B.tolist(), strict=True)
    }


def _mask_of_box(
    prob_MM: NDArray[np.float32], index: int, crops: PredictionCrops, settings: PredictionSettings
) -> InstanceMask:
    boxes = crops.reader.boxes
    image, window = boxes.image_of(index), crops.window_of(index)
    visible_xyxy = clip_to_image(boxes.box_xywh_N4[index], image)
    inside_xyxy = pixels_inside(visible_xyxy)
    x0, y0, x1, y1 = inside_xyxy
    if x0 >= x1 or y0 >= y1:
        return _empty_mask(boxes, index, NO_PIXEL)
    prob_HW = probability_in_window(prob_MM, window, crops.crop_size, inside_xyxy)
    mask_HW = prob_HW >= settings.threshold_of(boxes.area_of(index))
    if settings.keep_largest_part:
        mask_HW = keep_largest_part(mask_HW)
    area = int(np.count_nonzero(mask_HW))
    score = min(max(float(prob_HW[mask_HW].mean()), 0.0), 1.0) if area else 0.0
    rle = rle_from_window_mask(mask_HW, inside_xyxy, image.height, image.width)
    return InstanceMask(index, rle, score, area, "" if area else BELOW_THRESHOLD)


def probability_in_window(
    prob_MM: NDArray[np.float32], window: Window, crop_size: int, part_xyxy: Window
) -> NDArray[np.float32]:
    """Resize a map to the crop and that to its window; return a part of it, (H, W).

    Args:
        prob_MM: Probabilities of the crop.
        window: The crop's window, image pixels.
        crop_size: Side of the network's input, px.
        part_xyxy: The part inside the window: pixels outside the box never count.
    """
    left, top, right, bottom = window
    x0, y0, x1, y1 = part_xyxy
    return resize_map(
        prob_MM,
        crop_size,
        (bottom - top, right - left),
        (y0 - top, y1 - top),
        (x0 - left, x1 - left),
    )


def clip_to_image(box_xywh: NDArray[np.float64], image: CocoImage) -> NDArray[np.float64]:
    """Return the part of a box that its image shows, xyxy."""
    far = [image.width, image.height]
    return np.clip(xyxy_from_xywh(box_xywh), 0, far + far)


def pixels_inside(box_xyxy: NDArray[np.float64]) -> Window:
    """Return the pixels whose centres lie inside a box, right and bottom exclusive."""
    x0, y0, x1, y1 = box_xyxy.tolist()
    return (
        math.floor(x0 - 0.5) + 1,
        math.floor(y0 - 0.5) + 1,
        math.ceil(x1 - 0.5),
        math.ceil(y1 - 0.5),
    )


def _mask_without_image(reader: ImageReader, index: int) -> InstanceMask:
    is_missing = int(reader.boxes.image_index_N[index]) in reader.missing
    return _empty_mask(reader.boxes, index, MISSING_IMAGE if is_missing else UNREADABLE_IMAGE)


def _empty_mask(boxes: CocoBoxes, index: int, reason: str) -> InstanceMask:
    image = boxes.image_of(index)
    return InstanceMask(index, empty_rle(image.height, image.width), 0.0, 0, reason)
