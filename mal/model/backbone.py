"""Backbones: from a crop to feature maps.

A backbone is one row of `mal.spec.backbones` and one subclass of `Backbone`; see
docs/extending/backbone.md.

Shape letters: B items, S crop side (px), D width, h w token grid (S / stride).
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mal.errors import SpecError
from mal.model.weight_names import State, adapt_backbone
from mal.spec.backbones import BackboneEntry, backbone_entry
from mal.spec.experiment import ModelSpec
from mal.spec.rules import crop_size_problem


class Backbone(nn.Module):
    """Base class of all backbones: turns crops into feature maps."""

    feature_channels: list[int]
    """Channels of each feature map, in the order of `forward`."""

    def forward(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return one (B, D, h, w) feature map for each of `feature_channels`.

        The last one has the stride of the table entry; the object head, the token affinity and
        labelled points read it.
        """
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return what `model.frozen_stages` counts: 0 is the patch embedding, n is block n.

        Empty for a backbone that has no stages.
        """
        return []

    def freeze_stages(self, frozen_stages: Sequence[int]) -> None:
        """Stop training stages [last] or [first, last] (`model.frozen_stages`); [-1] freezes none.

        Raises:
            SpecError: The backbone has no stages, or not these.
        """
        last = frozen_stages[-1]
        if len(frozen_stages) > 1 and frozen_stages[0] > last:
            raise SpecError(
                f"model.frozen_stages must rise, got {list(frozen_stages)}. Swap its values."
            )
        if last < 0:
            return
        stages = self.stages()
        if not stages:
            raise SpecError(
                f"model.frozen_stages must be [-1] for this backbone, got {list(frozen_stages)}. "
                "Use model.freeze_backbone=true to train the heads only."
            )
        if last >= len(stages):
            raise SpecError(
                f"model.frozen_stages must end at {len(stages) - 1} or below, got "
                f"{list(frozen_stages)}: the backbone has {len(stages) - 1} blocks. Use [-1] to "
                "freeze none."
            )
        first = max(frozen_stages[0], 0) if len(frozen_stages) > 1 else 0
        for part in itertools.chain(*stages[first : last + 1]):
            part.requires_grad_(False)

    def prepare_for_export(self) -> None:
        """Replace operations that ONNX does not have by equal ones; by default there are none."""

    def adapt_weights(self, state: State) -> dict[str, Tensor]:
        """Rename and resize published weights so that they fit this backbone."""
        return adapt_backbone(state, self.state_dict())


def build_backbone(model: ModelSpec, crop_size: int, num_maps: int = 1) -> Backbone:
    """Build the backbone of `model.arch`, frozen as the spec says.

    Args:
        model: The spec's `model` section.
        crop_size: Side of the input, px.
        num_maps: Feature maps that the mask head reads.

    Raises:
        SpecError: The arch does not exist, or does not fit the crop or the mask head.
    """
    entry = describe_backbone(model.arch)
    if problem := crop_size_problem(entry, crop_size):
        raise SpecError(problem)
    built = _function_at(entry.builder)(
        entry, crop_size=crop_size, num_maps=num_maps, drop_path_rate=model.vit_dpr
    )
    backbone = _require_backbone(built, entry, num_maps)
    backbone.freeze_stages(model.frozen_stages)
    if model.freeze_backbone:
        backbone.requires_grad_(False)
    return backbone


def describe_backbone(arch: str) -> BackboneEntry:
    """Return the entry of an arch, completed by its library (timm) where the table is silent."""
    entry = backbone_entry(arch)
    return _function_at(entry.describer)(entry) if entry.describer else entry


def require_feature_maps(
    feature_maps: Any, backbone: Backbone, arch: str, grid_side: int
) -> list[Tensor]:
    """Check what a backbone returned for a crop.

    Raises:
        SpecError: The number of feature maps, their channels or the last one's size are not those
            that the backbone and its table entry declare.
    """
    declared = [("B", channels, "h", "w") for channels in backbone.feature_channels]
    is_list = isinstance(feature_maps, list) and all(
        isinstance(feature_map, Tensor) for feature_map in feature_maps
    )
    shapes = [tuple(m.shape) for m in feature_maps] if is_list else type(feature_maps).__name__
    if not is_list or [shape[1:2] for shape in shapes] != [(c,) for _, c, *_ in declared]:
        raise SpecError(
            f"forward of the backbone {arch} must return a list of tensors of shapes "
            f"{declared}, got {shapes}. Correct its feature_channels or its forward."
        )
    if tuple(shapes[-1][2:]) != (grid_side, grid_side):
        raise SpecError(
            f"the last feature map of the backbone {arch} must have {grid_side} x {grid_side} "
            f"cells, the crop size divided by stride_px, got {shapes[-1][2:]}. Correct stride_px "
            "in its table entry, or its forward."
        )
    return list(feature_maps)


def _require_backbone(backbone: Any, entry: BackboneEntry, num_maps: int) -> Backbone:
    if not isinstance(backbone, Backbone):
        raise SpecError(
            f"builder of the backbone {entry.arch} must return a mal.model.backbone.Backbone, got "
            f"{type(backbone).__name__}. Make it a subclass."
        )
    channels = getattr(backbone, "feature_channels", None)
    if not isinstance(channels, list) or len(channels) != num_maps:
        raise SpecError(
            f"feature_channels of the backbone {entry.arch} must be a list of {num_maps} "
            f"channels, one per feature map that the mask head reads, got {channels}. Set it in "
            "the constructor."
        )
    return backbone


def _function_at(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


class ViTBackbone(Backbone, VisionTransformer):  # type: ignore[misc]
    """A plain ViT without a classifier; parameter names are timm's.

    Args:
        entry: Its `options` give width, depth, number of heads and layer scale.
        crop_size: The position embeddings are of this size, px. For other crops, multiples of the
            patch, they are resized.
        num_maps: Feature maps that `forward` returns: of evenly spaced blocks, the last included.
        drop_path_rate: Stochastic depth.
    """

    # timm has no types.
    pos_embed: nn.Parameter
    cls_token: nn.Parameter
    patch_embed: Any
    blocks: nn.Sequential
    forward_intermediates: Callable[..., Any]

    def __init__(
        self,
        entry: BackboneEntry,
        crop_size: int,
        num_maps: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        width, depth = entry.options["width"], entry.options["depth"]
        super().__init__(
            img_size=crop_size,
            patch_size=entry.stride_px,
            embed_dim=width,
            depth=depth,
            num_heads=entry.options["num_heads"],
            init_values=entry.options["layer_scale"],
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path_rate,
        )
        self.feature_blocks = [depth * number // num_maps - 1 for number in range(1, num_maps + 1)]
        self.feature_channels = [width] * num_maps
        self.patch_embed.strict_img_size = False
        self._resized_positions: dict[int, tuple[tuple[object, ...], Tensor]] = {}

    def forward(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the patch tokens of the chosen blocks after the final norm."""
        feature_maps: list[Tensor] = self.forward_intermediates(
            image_BCSS, indices=self.feature_blocks, norm=True, intermediates_only=True
        )
        return feature_maps

    def _pos_embed(self, tokens_BND: Tensor) -> Tensor:
        """Prepend the class token and add the position embeddings (timm calls this)."""
        if tokens_BND.shape[1] == self.patch_embed.num_patches:
            with_positions: Tensor = super()._pos_embed(tokens_BND)
            return with_positions
        positions = self._positions_for(math.isqrt(tokens_BND.shape[1]))
        class_token_B1D = self.cls_token.expand(len(tokens_BND), -1, -1)
        return torch.cat([class_token_B1D, tokens_BND], dim=1) + positions

    def _positions_for(self, num_tokens_a_side: int) -> Tensor:
        """Return the position embeddings of another grid; kept until the weights change or move."""
        native = self.pos_embed
        if torch.compiler.is_compiling():  # a traced tensor has no data pointer
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

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return the embeddings, then each block."""
        embeddings = [self.patch_embed, self.pos_embed, self.cls_token]
        return [embeddings, *([block] for block in self.blocks)]
