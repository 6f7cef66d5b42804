"""Vision transformers, as timm builds them, that return their features as maps.

Shape letters: B items, S crop side (px), D width, h w token grid (S / patch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mal.errors import SpecError
from mal.spec.rules import patch_size_of


@dataclass(frozen=True)
class ViTSize:
    """Width, depth and heads of a plain ViT (Dosovitskiy et al. 2021, table 1)."""

    width: int
    depth: int
    num_heads: int


VIT_SIZES = {
    "tiny": ViTSize(192, 12, 3),
    "small": ViTSize(384, 12, 6),
    "base": ViTSize(768, 12, 12),
    "large": ViTSize(1024, 24, 16),
    "huge": ViTSize(1280, 32, 16),
}
# DINOv2 scales each residual branch by a learned vector (Oquab et al. 2023); MAE and DeiT do not.
LAYER_SCALE_START = {"dinov2": 1e-5}


class ViTBackbone(VisionTransformer):  # type: ignore[misc]
    """A plain ViT without a classifier; parameter names are timm's.

    Args:
        arch: `vit-<family>-<size>/<patch>`.
        crop_size: Side of the input, px; the position embeddings are of this size. Inputs of other
            sides, multiples of the patch, get resized ones.
        num_levels: How many blocks' tokens `forward` returns: the last, or evenly spaced ones.
        drop_path_rate: Stochastic depth.
    """

    def __init__(
        self,
        arch: str,
        crop_size: int,
        num_levels: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        _, family, size_name = arch.partition("/")[0].split("-")
        size = VIT_SIZES[size_name]
        super().__init__(
            img_size=crop_size,
            patch_size=patch_size_of(arch),
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.num_heads,
            init_values=LAYER_SCALE_START.get(family),
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path_rate,
        )
        self.level_blocks = [
            size.depth * level // num_levels - 1 for level in range(1, num_levels + 1)
        ]
        self.level_channels = [size.width] * num_levels
        self.patch_embed.strict_img_size = False
        self._resized_positions: dict[int, tuple[tuple[object, ...], Tensor]] = {}

    def forward(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the patch tokens of each level after the final norm, deepest last.

        Returns:
            One (B, D, h, w) map a level.
        """
        levels: list[Tensor] = self.forward_intermediates(
            image_BCSS, indices=self.level_blocks, norm=True, intermediates_only=True
        )
        return levels

    def _pos_embed(self, tokens_BND: Tensor) -> Tensor:
        """Put the class token before the others and add the position embeddings (timm's hook)."""
        if tokens_BND.shape[1] == self.patch_embed.num_patches:
            with_positions: Tensor = super()._pos_embed(tokens_BND)
            return with_positions
        positions = self._positions_for(math.isqrt(tokens_BND.shape[1]))
        class_token_B1D = self.cls_token.expand(len(tokens_BND), -1, -1)
        return torch.cat([class_token_B1D, tokens_BND], dim=1) + positions

    def _positions_for(self, num_tokens_a_side: int) -> Tensor:
        """Return position embeddings of another grid: resized once, until they change or move."""
        native = self.pos_embed
        if torch.compiler.is_compiling():  # a traced tensor has no address, and is nothing to keep
            return self._resize_positions(num_tokens_a_side)
        state = (native._version, native.data_ptr(), native.device, native.dtype)
        kept_state, kept = self._resized_positions.get(num_tokens_a_side, (None, native))
        if kept_state == state and not torch.is_grad_enabled():
            return kept
        resized = self._resize_positions(num_tokens_a_side)
        if not torch.is_grad_enabled():
            self._resized_positions[num_tokens_a_side] = state, resized
        return resized

    def _resize_positions(self, num_tokens_a_side: int) -> Tensor:
        side = [num_tokens_a_side, num_tokens_a_side]
        resized: Tensor = resample_abs_pos_embed(self.pos_embed, side, num_prefix_tokens=1)
        return resized

    def freeze_stages(self, frozen_stages: Sequence[int]) -> None:
        """Stop training stages: 0 is the patch embedding, n the n-th block; `[-1]` none.

        Args:
            frozen_stages: [last] (from 0 on) or [first, last].

        Raises:
            SpecError: There is no such stage, or the last comes before the first.
        """
        if len(frozen_stages) > 1 and frozen_stages[0] > frozen_stages[-1]:
            raise SpecError(
                f"model.frozen_stages must rise, got {list(frozen_stages)}. Swap its values."
            )
        if frozen_stages[-1] < 0:
            return
        if frozen_stages[-1] > len(self.blocks):
            raise SpecError(
                f"model.frozen_stages must end at {len(self.blocks)} or below, got "
                f"{list(frozen_stages)}: the backbone has {len(self.blocks)} blocks. Use [-1] to "
                "freeze none."
            )
        first = max(frozen_stages[0], 0) if len(frozen_stages) > 1 else 0
        for stage in range(first, frozen_stages[-1] + 1):
            if stage == 0:
                self.pos_embed.requires_grad_(False)
                self.cls_token.requires_grad_(False)
            module = self.patch_embed if stage == 0 else self.blocks[stage - 1]
            module.requires_grad_(False)
