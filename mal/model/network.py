"""MAL's network: image -> features -> object vector and mask map -> logits of the mask.

Student and teacher are two of these. Shape letters: B items, S crop side (px), D width, h w token
grid, C channels, M side of the mask map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mal.data.annotations import MEDIUM_MAX_AREA_PX2, SMALL_MAX_AREA_PX2
from mal.model.affinity import TokenAffinity
from mal.model.backbone import ViTBackbone
from mal.model.fused_head import FusedMaskHead
from mal.model.heads import ConvolutionalMaskHead, ObjectHead, resize_by, resize_to
from mal.model.hybrid import HybridBackbone, PyramidMaskHead
from mal.spec.experiment import ModelSpec
from mal.spec.rules import is_hybrid, patch_size_of

# Features of small, medium and large objects are resized by these before the mask head.
SIZE_SCALES = (0.5, 1.0, 2.0)


def size_class_of(box_area_B: Tensor) -> Tensor:
    """Return 0 for small (w*h <= 32^2), 1 for medium (<= 96^2), 2 for large boxes."""
    return (box_area_B > SMALL_MAX_AREA_PX2).long() + (box_area_B > MEDIUM_MAX_AREA_PX2).long()


class MALNetwork(nn.Module):
    """Predicts the mask of the object that a crop is centred on.

    Args:
        model: The spec's `model` section.
        crop_size: S, a multiple of the patch size.
    """

    def __init__(self, model: ModelSpec, crop_size: int) -> None:
        super().__init__()
        self.backbone = _build_backbone(model, crop_size)
        self.mask_head = _build_mask_head(model, self.backbone.level_channels)
        self.roi_head = ObjectHead(
            self.backbone.level_channels[-1],
            self.mask_head.out_channels + self.mask_head.num_bias_channels,
            model.object_pooling,
        )
        self.is_scaled_by_size = model.mask_head == "convolutional" and not model.not_adjust_scale
        self.map_size = self.mask_head.map_size_for(crop_size // patch_size_of(model.arch))

    def forward(self, image_BCSS: Tensor, unit_box_B4: Tensor, box_area_B: Tensor) -> Tensor:
        """Return logits of the mask, (B, M, M).

        Args:
            image_BCSS: Normalised RGB.
            unit_box_B4: Box, xyxy as 0..1 of the crop.
            box_area_B: w * h in original pixels.
        """
        return self.decode(self.encode(image_BCSS), image_BCSS, unit_box_B4, box_area_B)

    def encode(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the backbone's levels, deepest last: what a frozen backbone need compute once."""
        levels: list[Tensor] = self.backbone(image_BCSS)
        return levels

    def decode(
        self,
        levels: list[Tensor],
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        affinity: TokenAffinity | None = None,
    ) -> Tensor:
        """Return logits of the mask, (B, M, M), from the backbone's levels.

        Args:
            levels: Of `encode`.
            image_BCSS: Normalised RGB.
            unit_box_B4: Box, xyxy as 0..1 of the crop.
            box_area_B: w * h in original pixels. Best on the host: they choose the items that are
                computed together, and reading them back would make the host wait for the device.
            affinity: Of the deepest level's tokens, where somebody else needs it too.
        """
        vector_BC = self.roi_head(levels[-1], unit_box_B4)
        if not self.is_scaled_by_size:
            return self._match(vector_BC, self.mask_head(levels, image_BCSS, unit_box_B4, affinity))
        if torch.compiler.is_exporting():
            return self._decode_every_size(vector_BC, levels[-1], box_area_B)
        size_class_B = size_class_of(box_area_B.cpu())
        classes = sorted(set(size_class_B.tolist()))
        if len(classes) == 1:
            return self.match_scaled_by(SIZE_SCALES[classes[0]], vector_BC, levels[-1])
        shape = (len(vector_BC), self.map_size, self.map_size)
        logits_BMM: Tensor = vector_BC.new_zeros(shape, dtype=torch.float32)
        for size_class in classes:
            rows = (size_class_B == size_class).nonzero().squeeze(1)
            rows = _without_waiting(rows, vector_BC.device)
            logits = self.match_scaled_by(
                SIZE_SCALES[size_class], vector_BC[rows], levels[-1][rows]
            )
            logits_BMM = logits_BMM.index_copy(0, rows, logits)
        return logits_BMM

    def _decode_every_size(
        self, vector_BC: Tensor, features_BDhw: Tensor, box_area_B: Tensor
    ) -> Tensor:
        """Compute all sizes and choose: an exported graph cannot group the items of a batch."""
        logits_KBMM = torch.stack(
            [self.match_scaled_by(scale, vector_BC, features_BDhw) for scale in SIZE_SCALES]
        )
        size_class_B = size_class_of(box_area_B)
        chosen_KB = torch.stack([size_class_B == k for k in range(len(SIZE_SCALES))])
        return (logits_KBMM * chosen_KB[:, :, None, None]).sum(0)

    def match_scaled_by(self, scale: float, vector_BC: Tensor, features_BDhw: Tensor) -> Tensor:
        """Return the paper's head's logits of features resized by the scale of a size class."""
        maps = self.mask_head([resize_by(features_BDhw, scale)])
        return self._match(vector_BC, maps)

    def _match(self, vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return how well every place of the map matches the object, at the map size, float32.

        PyTorch does not shrink half precision on a CPU.
        """
        logits = self.mask_head.match(vector_BC, maps_BCHW).float()
        return resize_to(logits[:, None], (self.map_size, self.map_size))[:, 0]


@dataclass(frozen=True)
class SharedBackbones:
    """Which networks share a backbone, as plain numbers.

    It is found before the networks are traced: to `torch.export` (2.14) one module that two others
    hold is two objects, so that a comparison by identity in traced code finds no sharing.

    Attributes:
        owners: By backbone, the position of the first network that has it.
        backbone_of: By network, the position of its backbone in `owners`.
    """

    owners: tuple[int, ...]
    backbone_of: tuple[int, ...]

    @classmethod
    def among(cls, networks: Sequence[MALNetwork]) -> SharedBackbones:
        """Compare the backbones of networks."""
        owners: list[int] = []
        backbone_of = []
        for position, network in enumerate(networks):
            known = [networks[owner].backbone is network.backbone for owner in owners]
            if not any(known):
                owners.append(position)
                known.append(True)
            backbone_of.append(known.index(True))
        return cls(tuple(owners), tuple(backbone_of))

    def encode(self, networks: Sequence[MALNetwork], image_BCSS: Tensor) -> list[list[Tensor]]:
        """Return the levels of each backbone, in the order of `owners`."""
        return [networks[owner].encode(image_BCSS) for owner in self.owners]

    def encode_each(self, networks: Sequence[MALNetwork], image_BCSS: Tensor) -> list[list[Tensor]]:
        """Return the levels of each network; a backbone that several share is run once."""
        levels = self.encode(networks, image_BCSS)
        return [levels[backbone] for backbone in self.backbone_of]


def _without_waiting(rows: Tensor, device: torch.device) -> Tensor:
    """Move indices to a device while that works on."""
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def _build_backbone(model: ModelSpec, crop_size: int) -> ViTBackbone | HybridBackbone:
    backbone: ViTBackbone | HybridBackbone
    if is_hybrid(model.arch):
        backbone = HybridBackbone(crop_size)
    else:
        backbone = ViTBackbone(
            model.arch,
            crop_size,
            num_levels=2 if model.mask_head == "fused" else 1,
            drop_path_rate=model.vit_dpr,
        )
        backbone.freeze_stages(model.frozen_stages)
    if model.freeze_backbone:
        backbone.requires_grad_(False)
    return backbone


def _build_mask_head(
    model: ModelSpec, level_channels: list[int]
) -> ConvolutionalMaskHead | FusedMaskHead | PyramidMaskHead:
    if model.mask_head == "pyramid":
        return PyramidMaskHead(level_channels)
    if model.mask_head == "fused":
        return FusedMaskHead(level_channels, model.mask_scale_ratio)
    return ConvolutionalMaskHead(
        level_channels[-1],
        hidden_channels=model.mask_head_hidden_channel,
        out_channels=model.mask_head_out_channel,
        num_convs=model.mask_head_num_convs,
        scale=model.mask_scale_ratio,
        scale_pre=model.mask_scale_ratio_pre,
    )
