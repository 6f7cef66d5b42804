"""The table of backbones: what `model.arch` may name, and what each backbone can do.

The table is read while a spec is checked, so it imports no PyTorch: builders are named by module
and function, and imported when a network is built. docs/extending/backbone.md shows how to add one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mal.errors import SpecError

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class BackboneEntry:
    """One backbone of the table.

    Attributes:
        arch: Value of `model.arch`.
        builder: `module:function`; called with the entry, `crop_size`, `num_maps` and
            `drop_path_rate`, returns a `mal.model.backbone.Backbone`.
        stride_px: Crop pixels per cell of the last feature map; for a plain ViT its patch size. 0:
            the library knows it (timm), see `describer`.
        crop_step_px: The crop size must be a multiple of this. 0: of the stride.
        weights_licence: SPDX id of the published weights, `none` if there are none, or `unknown`.
        smaller: The arch that replaces this one when memory runs out; '' for none.
        mask_heads: Values of `model.mask_head` that fit.
        has_token_prior: Whether pretrained features of one object are similar: without training
            they give a coarse mask.
        can_cache_features: Whether `train.cached_crops` may keep its features.
        takes_any_crop: Whether a built network also reads crops of other sizes than its own.
        can_export: Whether PyTorch's ONNX exporter supports it.
        options: More values for the builder.
        describer: `module:function` that returns the entry with what only the library knows.
    """

    arch: str
    builder: str
    stride_px: int
    crop_step_px: int = 0
    weights_licence: str = UNKNOWN_LICENCE
    smaller: str = ""
    mask_heads: tuple[str, ...] = ("convolutional", "fused")
    has_token_prior: bool = True
    can_cache_features: bool = True
    takes_any_crop: bool = True
    can_export: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    describer: str = ""

    @property
    def crop_multiple_px(self) -> int:
        """What the crop size must be a multiple of; 0 if only the library knows it."""
        return self.crop_step_px or self.stride_px


BACKBONES: dict[str, BackboneEntry] = {}

# A whole family, by the prefix of its names: the library after the prefix knows the rest.
BACKBONE_FAMILIES: dict[str, BackboneEntry] = {
    "timm:": BackboneEntry(
        "timm:",
        builder="mal.model.timm_backbone:build_timm_backbone",
        describer="mal.model.timm_backbone:describe_timm_backbone",
        stride_px=0,
        takes_any_crop=False,
    ),
}
FAMILY_PATTERN = f"^({'|'.join(BACKBONE_FAMILIES)})[A-Za-z0-9_.-]+$"


def register_backbone(entry: BackboneEntry) -> None:
    """Add a backbone to the table.

    Raises:
        SpecError: The entry cannot work: its arch is taken, or its stride or builder is missing.
    """
    name = f"the backbone {entry.arch!r}"
    if entry.arch in BACKBONES:
        raise SpecError(f"arch of {name} must be new, got one of the table. Choose another name.")
    if entry.stride_px < 1:
        raise SpecError(
            f"stride_px of {name} must be at least 1, got {entry.stride_px}. Give the crop pixels "
            "per cell of its last feature map."
        )
    module, colon, function = entry.builder.partition(":")
    if not (module and colon and function):
        raise SpecError(
            f"builder of {name} must be 'module:function', got {entry.builder!r}. Name the "
            "function that builds it."
        )
    if entry.smaller and entry.smaller not in BACKBONES:
        raise SpecError(
            f"smaller of {name} must be a backbone of the table, got {entry.smaller!r}. Register "
            "that one first, or leave it ''."
        )
    BACKBONES[entry.arch] = entry


def backbone_entry(arch: str) -> BackboneEntry:
    """Return the entry of an arch.

    Raises:
        SpecError: The table has no such arch.
    """
    if arch in BACKBONES:
        return BACKBONES[arch]
    for prefix, family in BACKBONE_FAMILIES.items():
        if arch.startswith(prefix):
            return dataclasses.replace(family, arch=arch)
    raise SpecError(f"model.arch must be a known name, got {arch}. Use {', '.join(BACKBONES)}.")


def _register_vits(
    family: str,
    sizes: str,
    patch_px: int,
    licences: Mapping[str, str],
    *,
    smaller: str = "",
    layer_scale: float | None = None,
) -> str:
    """Register plain ViTs, smallest first (width, depth, heads: Dosovitskiy et al. 2021, table 1).

    Returns:
        The largest.
    """
    shapes = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }
    for size in sizes.split():
        width, depth, num_heads = shapes[size]
        options = {"width": width, "depth": depth, "num_heads": num_heads}
        arch = f"vit-{family}-{size}/{patch_px}"
        register_backbone(
            BackboneEntry(
                arch,
                builder="mal.model.backbone:ViTBackbone",
                stride_px=patch_px,
                weights_licence=licences.get(size, UNKNOWN_LICENCE),
                smaller=smaller,
                options=options | {"layer_scale": layer_scale},
            )
        )
        smaller = arch
    return smaller


_MAE_LICENCES = dict.fromkeys(("base", "large", "huge"), "CC-BY-NC-4.0")
_APACHE = dict.fromkeys(("tiny", "small", "base"), "Apache-2.0")

_largest_mae = _register_vits("mae", "tiny small base large", 16, _MAE_LICENCES)
_register_vits("mae", "huge", 14, _MAE_LICENCES, smaller=_largest_mae)
_register_vits("deit", "tiny small base", 16, _APACHE)
# DINOv2 scales each residual branch by a learned vector (Oquab et al. 2023); MAE and DeiT do not.
_register_vits("dinov2", "small base", 14, _APACHE, layer_scale=1e-5)
register_backbone(
    BackboneEntry(
        "vit-hybrid-small/8",
        builder="mal.model.hybrid:HybridBackbone",
        stride_px=8,
        weights_licence="none",
        mask_heads=("pyramid",),
        has_token_prior=False,
        can_cache_features=False,
        takes_any_crop=False,
    )
)
