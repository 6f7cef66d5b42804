"""Crops to masks of whole images: the one path of measuring, inference and `mal.Predictor`.

Shape letters: B items, S crop side (px), M side of the mask map, H W image or window height and
width, N boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mal.data.annotations import CocoBoxes, CocoImage
from mal.data.batch import CropBatch, mirror_unit_box, normalize_image
from mal.data.crop_dataset import ImageReader, PredictionCrops
from mal.data.crops import Window, xyxy_from_xywh
from mal.data.datamodule import prediction_loader
from mal.labeling.coco_rle import empty_rle, rle_from_window_mask
from mal.labeling.connected import keep_largest_part
from mal.labeling.masks import InstanceMask
from mal.model.network import MALNetwork, size_class_of

log = logging.getLogger(__name__)

ProbabilityModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(normalised image [B, 3, S, S], unit box [B, 4], box area [B]) -> probabilities [B, M, M]."""


@dataclass(frozen=True)
class PredictionSettings:
    """How boxes are cut and masks are made of probabilities.

    Attributes:
        crop_size: S.
        margin_rate: Of the window, `train.test_margin_rate[0]`.
        thresholds: One, or three for small, medium and large boxes.
        keep_largest_part: Drop all but the largest connected part of a mask.
        batch_size: Boxes a forward pass.
        num_workers: Loader processes.
    """

    crop_size: int
    margin_rate: float
    thresholds: Sequence[float]
    keep_largest_part: bool = False
    batch_size: int = 1
    num_workers: int = 0

    def threshold_of(self, box_area_px2: float) -> float:
        """Return the threshold of a box by its size."""
        if len(self.thresholds) == 1:
            return self.thresholds[0]
        return self.thresholds[int(size_class_of(torch.tensor(box_area_px2)))]


class NetworkEnsemble:
    """One or two networks, optionally with the mirrored crop, as a probability model."""

    def __init__(
        self, networks: Sequence[MALNetwork], *, use_flip: bool, device: torch.device
    ) -> None:
        self.networks = [
            network.to(device).to(memory_format=torch.channels_last).eval() for network in networks
        ]
        self.use_flip = use_flip
        self.device = device

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the first network."""
        backbone: nn.Module = self.networks[0].backbone
        return backbone

    @torch.inference_mode()
    def __call__(self, image_BCSS: Tensor, unit_box_B4: Tensor, box_area_B: Tensor) -> Tensor:
        """Return the mean probability, (B, M, M)."""
        inputs = [tensor.to(self.device) for tensor in (image_BCSS, unit_box_B4, box_area_B)]
        prob_BMM = self._mean_probability(*inputs)
        if self.use_flip:
            image, unit_box, area = inputs
            mirrored = self._mean_probability(image.flip(3), mirror_unit_box(unit_box), area)
            prob_BMM = (prob_BMM + mirrored.flip(2)) / 2
        return prob_BMM

    def _mean_probability(self, image: Tensor, unit_box: Tensor, area: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        levels: dict[int, list[Tensor]] = {}
        for network in self.networks:
            key = id(network.backbone)
            if key not in levels:
                levels[key] = network.encode(image)
            total = total + network.decode(levels[key], image, unit_box, area).float().sigmoid()
        return total / len(self.networks)


def predict_masks(
    model: ProbabilityModel,
    reader: ImageReader,
    indices: NDArray[np.int64],
    settings: PredictionSettings,
) -> Iterator[InstanceMask]:
    """Yield the mask of every row of `indices`, each exactly once.

    A box whose image is missing or broken gets an empty mask of score 0.
    """
    crops = PredictionCrops(
        reader, indices, crop_size=settings.crop_size, margin_rate=settings.margin_rate
    )
    loader = prediction_loader(
        crops, batch_size=settings.batch_size, num_workers=settings.num_workers
    )
    position = 0
    for batch in loader:
        wanted = indices[position : position + settings.batch_size]
        position += len(wanted)
        found = {} if batch is None else _masks_of_batch(model, batch, crops, settings)
        for index in wanted:
            yield found.get(int(index)) or _empty_mask(reader.boxes, int(index))


def _masks_of_batch(
    model: ProbabilityModel, batch: CropBatch, crops: PredictionCrops, settings: PredictionSettings
) -> dict[int, InstanceMask]:
    prob_BMM = model(normalize_image(batch.image_BCSS), batch.unit_box_B4, batch.box_area_B)
    boxes = crops.reader.boxes
    masks = {}
    for prob_MM, row in zip(prob_BMM.float().cpu().numpy(), batch.index_B, strict=True):
        index = int(row)
        image, window = boxes.image_of(index), crops.window_of(index)
        prob_HW = probability_in_window(prob_MM, window, settings.crop_size)
        visible_xyxy = clip_to_image(boxes.box_xywh_N4[index], image)
        threshold = settings.threshold_of(float(boxes.box_area_N[index]))
        mask_HW = (prob_HW >= threshold) & box_in_window(visible_xyxy, window)
        if settings.keep_largest_part:
            mask_HW = keep_largest_part(mask_HW)
        area = int(mask_HW.sum())
        score = min(max(float(prob_HW[mask_HW].mean()), 0.0), 1.0) if area else 0.0
        rle = rle_from_window_mask(mask_HW, window, image.height, image.width)
        masks[index] = InstanceMask(index, rle, score, area)
    return masks


def probability_in_window(
    prob_MM: NDArray[np.float32], window: Window, crop_size: int
) -> NDArray[np.float32]:
    """Resize a map to the crop and that to its window of the image, (H, W)."""
    x0, y0, x1, y1 = window
    in_crop = Image.fromarray(prob_MM).resize((crop_size, crop_size), Image.Resampling.BILINEAR)
    in_window = in_crop.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    return np.asarray(in_window, dtype=np.float32)


def clip_to_image(box_xywh: NDArray[np.float64], image: CocoImage) -> NDArray[np.float64]:
    """Return the part of a box that its image shows, xyxy."""
    far = [image.width, image.height]
    return np.clip(xyxy_from_xywh(box_xywh), 0, far + far)


def box_in_window(box_xyxy: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    """Return the window's pixels whose centre lies inside the box, (H, W)."""
    x0, y0, x1, y1 = window
    centre_x, centre_y = np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5
    inside_x = (centre_x > box_xyxy[0]) & (centre_x < box_xyxy[2])
    inside_y = (centre_y > box_xyxy[1]) & (centre_y < box_xyxy[3])
    inside_HW: NDArray[np.bool_] = inside_y[:, None] & inside_x[None, :]
    return inside_HW


def _empty_mask(boxes: CocoBoxes, index: int) -> InstanceMask:
    image = boxes.image_of(index)
    return InstanceMask(index, empty_rle(image.height, image.width), 0.0, 0)
