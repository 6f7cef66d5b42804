"""A small hybrid of convolutions and a transformer, for training from scratch on small sets.

A plain ViT needs more steps than a few hundred boxes allow; a convolutional stem learns edges and
textures early (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").

Shape letters: B items, S crop side (px), D width, C channels of the mask map; numbers are strides
of the crop.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mal.model.backbone import Backbone
from mal.model.heads import match_scaled, resize_by
from mal.spec.backbones import BackboneEntry

STEM_CHANNELS = (16, 32, 64)
WIDTH, DEPTH, NUM_HEADS, MLP_RATIO = 96, 3, 4, 3.0
TOKEN_STRIDE = 2
MAP_CHANNELS, PYRAMID_CHANNELS = 24, 48


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class HybridBackbone(Backbone):
    """Convolutions to stride 8, transformer blocks at stride 16, joined again at stride 8."""

    def __init__(self, _entry: BackboneEntry, crop_size: int, **_: object) -> None:
        super().__init__()
        c2, c4, c8 = STEM_CHANNELS
        self.stem2 = _convolution(3, c2, 2)
        self.stem4 = nn.Sequential(_convolution(c2, c4, 2), _convolution(c4, c4))
        self.stem8 = nn.Sequential(_convolution(c4, c8, 2), _convolution(c8, c8))
        self.to_tokens = nn.Conv2d(c8, WIDTH, 3, TOKEN_STRIDE, 1)
        tokens_a_side = -(-crop_size // 8 // TOKEN_STRIDE)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens_a_side**2, WIDTH) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(WIDTH, NUM_HEADS, MLP_RATIO, qkv_bias=True) for _ in range(DEPTH))
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.skip = nn.Conv2d(c8, WIDTH, 1)
        self.feature_channels = [c2, c4, WIDTH]

    def forward(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the feature maps of strides 2, 4 and 8."""
        maps2 = self.stem2(image_BCSS)
        maps4 = self.stem4(maps2)
        maps8 = self.stem8(maps4)
        grid = self.to_tokens(maps8)
        tokens_BND = grid.flatten(2).transpose(1, 2) + self.pos_embed
        tokens_BND = self.norm(self.blocks(tokens_BND))
        context = tokens_BND.transpose(1, 2).unflatten(2, grid.shape[-2:])
        context = F.interpolate(
            context, size=maps8.shape[-2:], mode="bilinear", align_corners=False
        )
        return [maps2, maps4, context + self.skip(maps8)]


class PyramidMaskHead(nn.Module):
    """Merges the feature maps from coarse to fine, up to half the crop's size."""

    num_bias_channels = 1

    def __init__(self, feature_channels: list[int]) -> None:
        super().__init__()
        c2, c4, c8 = feature_channels
        self.out_channels = MAP_CHANNELS
        self.merge8 = _convolution(c8, PYRAMID_CHANNELS)
        self.lateral4 = nn.Conv2d(c4, PYRAMID_CHANNELS, 1)
        self.merge4 = _convolution(PYRAMID_CHANNELS, MAP_CHANNELS)
        self.lateral2 = nn.Conv2d(c2, MAP_CHANNELS, 1)
        self.merge2 = _convolution(MAP_CHANNELS, MAP_CHANNELS)
        self.project = nn.Conv2d(MAP_CHANNELS, MAP_CHANNELS, 1)

    def map_size_for(self, num_tokens_a_side: int) -> int:
        """Return the side of the mask map, px."""
        # The last feature map has stride 8, the mask map stride 2.
        return 4 * num_tokens_a_side

    def forward(self, feature_maps: list[Tensor], *_: object) -> Tensor:
        """Return the map of vectors, (B, C, S/2, S/2)."""
        maps2, maps4, maps8 = feature_maps
        joined = resize_by(self.merge8(maps8), 2) + self.lateral4(maps4)
        joined = self.merge4(F.relu(joined))
        joined = resize_by(joined, 2) + self.lateral2(maps2)
        projected: Tensor = self.project(self.merge2(F.relu(joined)))
        return projected

    def match(self, vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return logits, (B, M, M)."""
        return match_scaled(vector_BC, maps_BCHW)
