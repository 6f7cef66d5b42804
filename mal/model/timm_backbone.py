"""Any model of timm that returns spatial feature maps, as a backbone (`model.arch=timm:NAME`).

Heads read maps of stride 16, or of the nearest finer stride that a model has; a coarser map would
lose small objects. Hierarchical models (Hiera, TinyViT) are cut after the last stage that is read,
so that no unused weight waits for a gradient.

Shape letters: B items, S crop side (px), D width, h w token grid.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from torch import Tensor, nn
from torch.nn import functional as F

from mal.data.batch import IMAGENET_MEAN, IMAGENET_STD
from mal.errors import SpecError
from mal.model.backbone import Backbone
from mal.model.heads import resize_to
from mal.model.weight_names import State, strip_prefix
from mal.spec.backbones import UNKNOWN_LICENCE, BackboneEntry

PREFIX = "timm:"
MAX_STRIDE_PX = 16
MODULES_WITH_OTHER_ATTENTION = ("timm.models.hiera", "timm.models.vision_transformer_sam")
EMBEDDINGS = ("patch_embed", "pos_embed", "cls_token", "reg_token")
# Families that the tests train, predict with and export: suggested for a model that cannot be used.
TESTED_FAMILIES = ("vit_*_patch*_224", "vit_*_dinov3", "samvit_*", "hiera_*", "tiny_vit_*")


class TimmBackbone(Backbone):
    """A timm model; `state_dict` keys are timm's, below `model.`."""

    def __init__(
        self, entry: BackboneEntry, crop_size: int, num_maps: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        name = entry.arch.removeprefix(PREFIX)
        self.model: Any = _create_model(name, crop_size, drop_path_rate)
        self.indices = _indices_to_read(_strides_of(self.model), num_maps)
        self.applies_norm = _applies_norm(self.model)
        self.model.prune_intermediate_layers(
            sorted(self.indices), prune_norm=not self.applies_norm, prune_head=True
        )
        self._set_normalization(self.model.pretrained_cfg)
        feature_maps = self._try_forward(entry.arch, crop_size, entry.stride_px)
        self.feature_channels = [feature_map.shape[1] for feature_map in feature_maps]

    def forward(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return feature maps on the grid of the last one."""
        if self.mean is not None:
            image_BCSS = (image_BCSS - self.mean) / self.std
        found = self._intermediates(image_BCSS)
        by_index = dict(zip(sorted(self.indices), found, strict=True))
        grid = by_index[self.indices[-1]].shape[-2:]
        return [resize_to(by_index[index], grid) for index in self.indices]

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return the embeddings, then each block (or each stage, where timm has stages)."""
        blocks = getattr(self.model, "blocks", getattr(self.model, "stages", None))
        if blocks is None:
            return []
        found = (getattr(self.model, name, None) for name in EMBEDDINGS)
        return [[part for part in found if part is not None], *([block] for block in blocks)]

    def adapt_weights(self, state: State) -> dict[str, Tensor]:
        """Rename published weights as timm does, and resize their position embeddings."""
        wanted = self.model.state_dict()
        state = strip_prefix(state, self.state_dict())
        state = {key.removeprefix("model."): value for key, value in state.items()}
        state = strip_prefix(state, wanted)
        module = importlib.import_module(type(self.model).__module__)
        if filter_weights := getattr(module, "checkpoint_filter_fn", None):
            if wanted.keys() <= state.keys():  # TinyViT's filter fails on stages that were cut off
                state = {key: state[key] for key in wanted}
            state = filter_weights(dict(state), self.model)
        return {
            f"model.{key}": _resize_positions(key, value, wanted.get(key))
            for key, value in state.items()
        }

    def prepare_for_export(self) -> None:
        """Compute attention step by step where timm's fused one is not 4D.

        torch 2.14 exports scaled_dot_product_attention of 4D tensors only; SAM-ViT's are 3D,
        Hiera's 5D.
        """
        for module in self.model.modules():
            if type(module).__module__ in MODULES_WITH_OTHER_ATTENTION:
                module.fused_attn = False

    def _intermediates(self, image_BCSS: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.model.forward_intermediates(
            image_BCSS,
            indices=sorted(self.indices),
            norm=self.applies_norm,
            intermediates_only=True,
        )
        return found

    @torch.no_grad()
    def _try_forward(self, arch: str, crop_size: int, stride_px: int) -> list[Tensor]:
        """Run one black crop: timm does not declare the channels after the last norm."""
        is_training = self.model.training
        self.model.eval()
        parameter = next(self.model.parameters())
        image = torch.zeros(1, 3, crop_size, crop_size, device=parameter.device)
        try:
            feature_maps = self.forward(image)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            raise _unusable(arch, f"it cannot read a crop of {crop_size} px ({error})") from error
        finally:
            self.model.train(is_training)
        if any(feature_map.ndim != 4 for feature_map in feature_maps):
            raise _unusable(arch, "its features are no spatial maps")
        grid, side = tuple(feature_maps[-1].shape[2:]), crop_size // stride_px
        if grid != (side, side):
            raise _unusable(
                arch, f"of a crop of {crop_size} px it gives {grid} cells instead of {side, side}"
            )
        return feature_maps

    def _set_normalization(self, pretrained_cfg: Any) -> None:
        """Convert crops, normalised by ImageNet's mean and deviation, to the model's own."""
        mean, std = pretrained_cfg.get("mean"), pretrained_cfg.get("std")
        self.mean: Tensor | None
        self.std: Tensor
        if not mean or (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
            self.mean = None
            return
        own_mean, own_std, our_mean, our_std = (
            torch.tensor(values)[:, None, None]
            for values in (mean, std, IMAGENET_MEAN, IMAGENET_STD)
        )
        self.register_buffer("mean", (own_mean - our_mean) / our_std, persistent=False)
        self.register_buffer("std", own_std / our_std, persistent=False)


def build_timm_backbone(
    entry: BackboneEntry, *, crop_size: int, num_maps: int, drop_path_rate: float
) -> TimmBackbone:
    """Build `timm:NAME` with random weights.

    Raises:
        SpecError: timm has no such model, or it gives no feature maps for this crop.
    """
    return TimmBackbone(entry, crop_size, num_maps, drop_path_rate)


@functools.cache
def _shape_of(name: str) -> tuple[tuple[int, ...], str]:
    """Return the strides of a model's feature maps, px, and the licence of its weights."""
    with torch.device("meta"):  # no memory for weights that only say their shapes
        model = _create_model(name)
    return tuple(_strides_of(model)), str(model.pretrained_cfg.get("license") or UNKNOWN_LICENCE)


def describe_timm_backbone(entry: BackboneEntry) -> BackboneEntry:
    """Complete the entry of `timm:NAME` by what timm knows of the model.

    Raises:
        SpecError: timm has no such model, or it gives no feature maps.
    """
    strides, licence = _shape_of(entry.arch.removeprefix(PREFIX))
    return dataclasses.replace(
        entry,
        stride_px=strides[_indices_to_read(strides, 1)[-1]],
        crop_step_px=max(strides),
        weights_licence=licence,
        can_cache_features=len(set(strides)) == 1,
    )


def _create_model(name: str, crop_size: int | None = None, drop_path_rate: float = 0.0) -> Any:
    """Create a timm model for a crop size, without a classifier.

    Models of fixed grids take `img_size`; fully convolutional ones refuse it.
    """
    arch = f"{PREFIX}{name}"
    if not timm.is_model(name):
        raise SpecError(
            f"model.arch must be a model of timm {timm.__version__}, got {arch}. Use the nearest: "
            f"{_nearest(name)}."
        )
    given: dict[str, Any] = {"num_classes": 0}
    if drop_path_rate:
        given["drop_path_rate"] = drop_path_rate
    try:
        try:
            model = timm.create_model(name, img_size=crop_size, **given)
        except TypeError:
            model = timm.create_model(name, **given)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise _unusable(arch, f"timm cannot build it ({error})") from error
    for method in ("forward_intermediates", "prune_intermediate_layers"):
        if not hasattr(model, method):
            raise _unusable(arch, f"it has no {method}")
    return model


def _strides_of(model: Any) -> list[int]:
    info = model.feature_info
    entries = info if isinstance(info, list) else info.info
    return [int(entry["reduction"]) for entry in entries]


def _indices_to_read(strides: Sequence[int], num_maps: int) -> list[int]:
    """Choose the feature maps that the heads read; the last one has the stride of the table entry.

    Of a plain ViT these are evenly spaced blocks. Of a hierarchical model the last one is the
    deepest map of stride 16 or finer, after the coarser maps below it.
    """
    fine_enough = [i for i, stride in enumerate(strides) if stride <= MAX_STRIDE_PX]
    last = fine_enough[-1] if fine_enough else strides.index(min(strides))
    if len(set(strides)) == 1:
        return [len(strides) * number // num_maps - 1 for number in range(1, num_maps + 1)]
    nearby = sorted(range(len(strides)), key=lambda i: (abs(i - last), -i))[:num_maps]
    return [*sorted((i for i in nearby if i != last), reverse=True), last]


def _applies_norm(model: object) -> bool:
    """Whether a model can apply its last norm to every feature map; Hiera and SAM 2 cannot."""
    return type(model).__module__.rpartition(".")[2] not in ("hiera", "hieradet_sam2")


def _resize_positions(key: str, have: Tensor, wanted: Tensor | None) -> Tensor:
    """Resize what timm's own filters leave at the size of training: SAM's and Hiera's positions."""
    if wanted is None or have.shape == wanted.shape or have.ndim != wanted.ndim:
        return have
    resized = have
    if key == "pos_embed" and have.ndim == 4:
        resized = resample_abs_pos_embed_nhwc(have, list(wanted.shape[1:3]))
    elif key == "pos_embed" and have.ndim == 3 and have.shape[2] == wanted.shape[2]:
        side = round(wanted.shape[1] ** 0.5)
        resized = resample_abs_pos_embed(have, [side, side], num_prefix_tokens=0)
    elif key.endswith(("rel_pos_h", "rel_pos_w")) and have.shape[1] == wanted.shape[1]:
        resized = F.interpolate(have.T[None], size=wanted.shape[0], mode="linear")[0].T
    return resized


def _nearest(name: str) -> str:
    usable = timm.list_models(list(TESTED_FAMILIES), exclude_filters="*_r*_s*")
    return f"{PREFIX}{difflib.get_close_matches(name, usable, n=1, cutoff=0)[0]}"


def _unusable(arch: str, reason: str) -> SpecError:
    return SpecError(
        f"model.arch must be a model of timm that returns feature maps, got {arch}: {reason}. Use "
        f"the nearest: {_nearest(arch.removeprefix(PREFIX))}."
    )
