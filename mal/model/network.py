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
from mal.model.backbone import build_backbone, describe_backbone, require_feature_maps
from mal.model.fused_head import FusedMaskHead
from mal.model.heads import ConvolutionalMaskHead, RoiHead, resize_by, resize_to
from mal.model.hybrid import PyramidMaskHead
from mal.spec.experiment import ModelSpec

# Features of small, medium and large objects are resized by these before the mask head.
SIZE_SCALES = (0.5, 1.0, 2.0)
# How many feature maps each mask head reads.
NUM_FEATURE_MAPS = {"convolutional": 1, "fused": 2, "pyramid": 3}


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
        self.arch = model.arch
        self.stride_px = describe_backbone(model.arch).stride_px
        self.backbone = build_backbone(model, crop_size, NUM_FEATURE_MAPS[model.mask_head])
        self.mask_head = _build_mask_head(model, self.backbone.feature_channels)
        self.roi_head = RoiHead(
            self.backbone.feature_channels[-1],
            self.mask_head.out_channels + self.mask_head.num_bias_channels,
            model.object_pooling,
        )
        self.is_scaled_by_size = model.mask_head == "convolutional" and not model.not_adjust_scale
        self.map_size = self.mask_head.map_size_for(crop_size // self.stride_px)

    def forward(self, image_BCSS: Tensor, unit_box_B4: Tensor, box_area_B: Tensor) -> Tensor:
        """Return logits of the mask, (B, M, M).

        Args:
            image_BCSS: Normalised RGB.
            unit_box_B4: Box, xyxy as 0..1 of the crop.
            box_area_B: w * h in original pixels.
        """
        return self.decode(self.encode(image_BCSS), image_BCSS, unit_box_B4, box_area_B)

    def encode(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the backbone's feature maps; those of a frozen backbone can be cached."""
        feature_maps = self.backbone(image_BCSS)
        grid_side = image_BCSS.shape[-1] // self.stride_px
        return require_feature_maps(feature_maps, self.backbone, self.arch, grid_side)

    def decode(
        self,
        feature_maps: list[Tensor],
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        affinity: TokenAffinity | None = None,
    ) -> Tensor:
        """Return logits of the mask, (B, M, M), from the backbone's feature maps.

        Args:
            feature_maps: What `encode` returned.
            image_BCSS: Normalised RGB.
            unit_box_B4: Box, xyxy as 0..1 of the crop.
            box_area_B: w * h in original pixels, on the host: they select the items that are
                computed together, and reading them from a GPU would make the host wait for it.
            affinity: Token affinity of the last feature map, if it is computed already.
        """
        vector_BC = self.roi_head(feature_maps[-1], unit_box_B4)
        if not self.is_scaled_by_size:
            maps = self.mask_head(feature_maps, image_BCSS, unit_box_B4, affinity)
            return self._match(vector_BC, maps)
        if torch.compiler.is_exporting():
            return self._decode_every_size(vector_BC, feature_maps[-1], box_area_B)
        size_class_B = size_class_of(box_area_B.cpu())
        classes = sorted(set(size_class_B.tolist()))
        if len(classes) == 1:
            return self.mask_logits_at_scale(SIZE_SCALES[classes[0]], vector_BC, feature_maps[-1])
        shape = (len(vector_BC), self.map_size, self.map_size)
        logits_BMM: Tensor = vector_BC.new_zeros(shape, dtype=torch.float32)
        for size_class in classes:
            rows = (size_class_B == size_class).nonzero().squeeze(1)
            rows = to_device_async(rows, vector_BC.device)
            logits = self.mask_logits_at_scale(
                SIZE_SCALES[size_class], vector_BC[rows], feature_maps[-1][rows]
            )
            logits_BMM = logits_BMM.index_copy(0, rows, logits)
        return logits_BMM

    def _decode_every_size(
        self, vector_BC: Tensor, features_BDhw: Tensor, box_area_B: Tensor
    ) -> Tensor:
        """Compute all sizes and select: an exported graph cannot group the items of a batch."""
        logits_KBMM = torch.stack(
            [self.mask_logits_at_scale(scale, vector_BC, features_BDhw) for scale in SIZE_SCALES]
        )
        size_class_B = size_class_of(box_area_B)
        chosen_KB = torch.stack([size_class_B == k for k in range(len(SIZE_SCALES))])
        return (logits_KBMM * chosen_KB[:, :, None, None]).sum(0)

    def mask_logits_at_scale(
        self, scale: float, vector_BC: Tensor, features_BDhw: Tensor
    ) -> Tensor:
        """Return the convolutional head's logits for features resized by a size class's scale."""
        maps = self.mask_head([resize_by(features_BDhw, scale)])
        return self._match(vector_BC, maps)

    def _match(self, vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return logits at the map size, float32: a CPU cannot resize half precision."""
        logits = self.mask_head.match(vector_BC, maps_BCHW).float()
        return resize_to(logits[:, None], (self.map_size, self.map_size))[:, 0]


@dataclass(frozen=True)
class SharedBackbones:
    """Which networks share a backbone, as plain numbers.

    This is determined before tracing: `torch.export` (2.14) copies a module that two others hold,
    so a comparison by identity in traced code finds no sharing.

    Attributes:
        owners: For each backbone, the index of the first network that has it.
        backbone_of: For each network, the index of its backbone in `owners`.
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
        """Return the feature maps of each backbone, in the order of `owners`."""
        return [networks[owner].encode(image_BCSS) for owner in self.owners]

    def encode_each(self, networks: Sequence[MALNetwork], image_BCSS: Tensor) -> list[list[Tensor]]:
        """Return the feature maps of each network; a backbone that several share is run once."""
        feature_maps = self.encode(networks, image_BCSS)
        return [feature_maps[backbone] for backbone in self.backbone_of]


def to_device_async(rows: Tensor, device: torch.device) -> Tensor:
    """Copy indices to a device without making the host wait for it."""
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def _build_mask_head(
    model: ModelSpec, feature_channels: list[int]
) -> ConvolutionalMaskHead | FusedMaskHead | PyramidMaskHead:
    if model.mask_head == "pyramid":
        return PyramidMaskHead(feature_channels)
    if model.mask_head == "fused":
        return FusedMaskHead(feature_channels, model.mask_scale_ratio)
    return ConvolutionalMaskHead(
        feature_channels[-1],
        hidden_channels=model.mask_head_hidden_channel,
        out_channels=model.mask_head_out_channel,
        num_convs=model.mask_head_num_convs,
        scale=model.mask_scale_ratio,
        scale_pre=model.mask_scale_ratio_pre,
    )
