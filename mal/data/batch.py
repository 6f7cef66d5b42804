"""The input of the network: a batch of crops, each around one box.

Shape letters: B items, C = 3 channels, S crop side (px), M side of the mask map, K points.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class CropBatch:
    """Crops around boxes; images stay uint8 until they are on the device.

    Attributes:
        image_BCSS: Clean crops, uint8 RGB: the teacher's input.
        unit_box_B4: Box clipped to the image, xyxy as 0..1 of the crop.
        box_area_B: w * h in original pixels.
        index_B: Row of `CocoBoxes`.
        student_image_BCSS: Augmented crops, uint8; None where there is no augmentation.
        true_mask_BSS: True masks, uint8 0/1; None unless `train.supervision` is mask.
        features_BLDhw: Cached feature maps of the clean crops, L of them; None: not cached.
        point_BK3: Labelled points: x and y as 0..1 of the crop, and 1 on the object, 0 off it, -1
            no point; None where the set has none.
    """

    image_BCSS: Tensor
    unit_box_B4: Tensor
    box_area_B: Tensor
    index_B: Tensor
    student_image_BCSS: Tensor | None = None
    true_mask_BSS: Tensor | None = None
    features_BLDhw: Tensor | None = None
    point_BK3: Tensor | None = None

    def __post_init__(self) -> None:
        num_items, channels, height, width = self.image_BCSS.shape
        assert self.image_BCSS.dtype == torch.uint8, self.image_BCSS.dtype
        assert channels == 3, self.image_BCSS.shape
        assert height == width, self.image_BCSS.shape
        assert self.unit_box_B4.shape == (num_items, 4), self.unit_box_B4.shape
        assert self.box_area_B.shape == self.index_B.shape == (num_items,)
        assert self.point_BK3 is None or self.point_BK3.shape[::2] == (num_items, 3)

    def __len__(self) -> int:
        return len(self.index_B)

    def mirrored(self) -> Self:
        """Return the crops, boxes, points, masks and features flipped left to right."""

        def flip(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flip(-1)

        image = flip(self.image_BCSS)
        assert image is not None
        return dataclasses.replace(
            self,
            image_BCSS=image,
            unit_box_B4=mirror_unit_box(self.unit_box_B4),
            student_image_BCSS=flip(self.student_image_BCSS),
            true_mask_BSS=flip(self.true_mask_BSS),
            features_BLDhw=flip(self.features_BLDhw),
            point_BK3=None if self.point_BK3 is None else mirror_points(self.point_BK3),
        )

    def to(self, device: torch.device) -> Self:
        """Move every tensor to the device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Pin every tensor (called by the data loader on CUDA)."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = {
            field.name: change(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return type(self)(**changed)


def mirror_unit_box(unit_box_B4: Tensor) -> Tensor:
    """Flip boxes left to right: x0 and x1 become 1 - x1 and 1 - x0."""
    x0_B, y0_B, x1_B, y1_B = unit_box_B4.unbind(1)
    return torch.stack([1 - x1_B, y0_B, 1 - x0_B, y1_B], dim=1)


def mirror_points(point_BK3: Tensor) -> Tensor:
    """Flip points left to right: x becomes 1 - x."""
    x_BK, y_BK, label_BK = point_BK3.unbind(2)
    return torch.stack([1 - x_BK, y_BK, label_BK], dim=2)


def collate_crops(items: Sequence[CropBatch]) -> CropBatch:
    """Join batches of one item to one batch."""
    joined: dict[str, Any] = {}
    for field in fields(CropBatch):
        values = [getattr(item, field.name) for item in items]
        joined[field.name] = None if values[0] is None else torch.cat(values)
    return CropBatch(**joined)


def normalize_image(image_BCSS: Tensor) -> Tensor:
    """Convert uint8 RGB to float32 with ImageNet's mean and standard deviation.

    Returns:
        The same shape, channels last in memory: convolutions then run 1.3 to 1.9 times as fast.
    """
    mean, std = imagenet_constants_on(image_BCSS.device)
    normalized = (image_BCSS.float() / 255 - mean) / std
    return normalized.contiguous(memory_format=torch.channels_last)


@functools.cache
@torch.inference_mode(False)
def imagenet_constants_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, (C, 1, 1). They are copied once: each copy makes the host wait."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.to(device), std.to(device)


def box_mask_from_unit_box(unit_box_B4: Tensor, size_px: int) -> Tensor:
    """Return 1 for map pixels whose centre lies inside the box, else 0; shape (B, M, M)."""
    centre_M = (torch.arange(size_px, device=unit_box_B4.device) + 0.5) / size_px
    x0_B1, y0_B1, x1_B1, y1_B1 = unit_box_B4.unsqueeze(-1).unbind(1)
    inside_x_BM = (centre_M > x0_B1) & (centre_M < x1_B1)
    inside_y_BM = (centre_M > y0_B1) & (centre_M < y1_B1)
    return (inside_y_BM[:, :, None] & inside_x_BM[:, None, :]).float()
