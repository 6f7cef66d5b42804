"""The heads of MAL: a vector for the object, and a map of vectors for the pixels.

Shape letters: B items, D backbone width, C channels of vector and map, h w token grid, M map side,
S crop side (px).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OBJECT_CHANNELS = 256


class RoiHead(nn.Module):
    """Turns features averaged over the crop, or of the box against the rest, into a vector."""

    def __init__(self, in_channels: int, out_channels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, OBJECT_CHANNELS),
            nn.ReLU(),
            nn.Linear(OBJECT_CHANNELS, out_channels),
        )

    def forward(self, features_BDhw: Tensor, unit_box_B4: Tensor) -> Tensor:
        """Return the object vector, (B, C)."""
        if self.pooling == "crop":
            pooled_BD = features_BDhw.mean((2, 3))
        else:
            inside_Bhw = box_coverage(unit_box_B4, features_BDhw.shape[-1])
            inside_BD = pool_over(features_BDhw, inside_Bhw)
            pooled_BD = inside_BD - pool_over(features_BDhw, 1 - inside_Bhw)
        vector_BC: Tensor = self.mlp(pooled_BD)
        return vector_BC


def box_coverage(unit_box_B4: Tensor, size: int) -> Tensor:
    """Return the fraction of each cell of a size x size grid that the box covers."""
    edge = torch.arange(size + 1, device=unit_box_B4.device) / size

    def cover(low_B: Tensor, high_B: Tensor) -> Tensor:
        upper = torch.minimum(edge[1:], high_B[:, None])
        lower = torch.maximum(edge[:-1], low_B[:, None])
        return (upper - lower).clamp(min=0) * size

    x0_B, y0_B, x1_B, y1_B = unit_box_B4.unbind(1)
    return cover(y0_B, y1_B)[:, :, None] * cover(x0_B, x1_B)[:, None, :]


def pool_over(features_BDhw: Tensor, weight_Bhw: Tensor) -> Tensor:
    """Average features with weights, (B, D)."""
    total_BD = torch.einsum("bdhw,bhw->bd", features_BDhw, weight_Bhw)
    return total_BD / weight_Bhw.sum((1, 2)).clamp(min=1e-3)[:, None]


class ConvolutionalMaskHead(nn.Module):
    """The paper's mask head: 3x3 convolutions with an upsampling before the fourth.

    Args:
        in_channels: D.
        hidden_channels: Width between.
        out_channels: C.
        num_convs: 3x3 convolutions, each followed by ReLU.
        scale: Upsampling before the fourth (or the last) convolution.
        scale_pre: Upsampling before the first.
    """

    UPSAMPLED_CONV = 3
    MAP_CELLS_PER_TOKEN = 4
    num_bias_channels = 0

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_channels: int,
        out_channels: int,
        num_convs: int,
        scale: float,
        scale_pre: int,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * (num_convs - 1), out_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, 3, padding=1) for narrow, wide in itertools.pairwise(widths)
        )
        initialize_convolutions(self)
        self.upsampled_conv = min(self.UPSAMPLED_CONV, num_convs - 1)
        self.scale = scale
        self.scale_pre = scale_pre
        self.out_channels = out_channels

    def map_size_for(self, num_tokens_a_side: int) -> int:
        """Return the side of the mask map, px."""
        return self.MAP_CELLS_PER_TOKEN * num_tokens_a_side

    def forward(self, feature_maps: list[Tensor], *_: object) -> Tensor:
        """Return the map of vectors, (B, C, scale * h, scale * w), of the last feature map."""
        maps = resize_by(feature_maps[-1], self.scale_pre)
        for position, conv in enumerate(self.convs):
            if position == self.upsampled_conv:
                maps = resize_by(maps, self.scale)
            maps = F.relu(conv(maps))
        return maps

    def match(self, vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return logits, (B, H, W)."""
        return torch.einsum("bc,bchw->bhw", vector_BC, maps_BCHW)


def match_scaled(vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
    """Return logits (B, H, W): scaled dot product plus a bias, the vector's last channel.

    Without scaling the first steps of a short run saturate; the bias sets an object's certainty
    without using a channel of the map.
    """
    dot_BHW = torch.einsum("bc,bchw->bhw", vector_BC[:, :-1], maps_BCHW)
    return dot_BHW / math.sqrt(maps_BCHW.shape[1]) + vector_BC[:, -1, None, None]


def initialize_convolutions(module: nn.Module) -> None:
    """Initialise convolution weights as He et al. do for ReLU, biases with zero."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def resize_by(maps_BCHW: Tensor, factor: float) -> Tensor:
    """Resize maps bilinearly by a factor."""
    if factor == 1:
        return maps_BCHW
    return F.interpolate(maps_BCHW, scale_factor=factor, mode="bilinear", align_corners=False)


def resize_to(maps_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly to a size, averaging where they shrink."""
    if tuple(maps_BCHW.shape[-2:]) == tuple(size):
        return maps_BCHW
    return F.interpolate(
        maps_BCHW,
        size=tuple(size),
        mode="bilinear",
        align_corners=False,
        antialias=maps_BCHW.shape[-1] > size[-1],
    )
