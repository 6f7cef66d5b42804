"""The network's shapes and its choice by object size, for every backbone and head."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mal.model.network import MALNetwork, size_class_of
from mal.spec.backbones import BACKBONES
from mal.spec.experiment import ModelSpec

TINY = ModelSpec(arch="vit-mae-tiny/16", mask_head_hidden_channel=8, mask_head_out_channel=8)
AREAS = torch.tensor([100.0, 5000.0, 50_000.0, 1024.0, 9216.0])


def inputs(num_items: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_items)
    image = torch.randn(num_items, 3, size, size, generator=generator)
    box = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).repeat(num_items, 1)
    return image, box, AREAS[:num_items]


def build(size: int = 32, **changes: Any) -> MALNetwork:
    torch.manual_seed(0)
    return MALNetwork(dataclasses.replace(TINY, **changes), size).eval()


@pytest.mark.parametrize(
    ("area_px2", "size_class"),
    [(1, 0), (32**2, 0), (32**2 + 1, 1), (96**2, 1), (96**2 + 1, 2), (1e9, 2)],
)
def test_every_area_falls_into_one_size_class(area_px2: float, size_class: int) -> None:
    assert size_class_of(torch.tensor([float(area_px2)])).tolist() == [size_class]


@pytest.mark.parametrize(
    "changes",
    [
        *({"mask_head_num_convs": count} for count in (1, 2, 3, 4, 5)),
        {"mask_scale_ratio": 1.0},
        {"mask_scale_ratio": 1.5},
        {"mask_scale_ratio": 4.0},
        {"mask_scale_ratio_pre": 2},
        {"mask_scale_ratio_pre": 3, "mask_head_num_convs": 1},
        {"not_adjust_scale": True},
        {"object_pooling": "box"},
        {"mask_head_hidden_channel": 4, "mask_head_out_channel": 12},
    ],
    ids=str,
)
def test_every_setting_of_the_mask_head_works(changes: dict[str, Any]) -> None:
    network = build(**changes)
    logits = network(*inputs(5, 32))
    assert logits.shape == (5, 8, 8)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in network.mask_head.parameters())


@pytest.mark.parametrize("size", [32, 48, 64])
def test_the_convolutional_map_has_four_cells_a_token(size: int) -> None:
    network = build(size)
    assert network.map_size == 4 * size // 16
    assert network(*inputs(3, size)).shape == (3, network.map_size, network.map_size)


FUSED = [("vit-mae-tiny/16", "fused"), ("vit-dinov2-small/14", "fused")]


@pytest.mark.parametrize(
    ("arch", "name"),
    [*((arch, entry.mask_heads[0]) for arch, entry in BACKBONES.items()), *FUSED],
)
def test_every_backbone_builds(arch: str, name: str) -> None:
    stride_px = BACKBONES[arch].stride_px
    size = 2 * stride_px * (2 if name == "pyramid" else 1)
    with torch.device("meta"):
        network = MALNetwork(ModelSpec(arch=arch, mask_head=name), size)
        image = torch.empty(2, 3, size, size)
        feature_maps = network.encode(image)
    assert [m.shape[1] for m in feature_maps] == network.backbone.feature_channels
    names = {key.partition(".")[0] for key in network.state_dict()}
    assert names == {"backbone", "mask_head", "roi_head"}
    if name == "convolutional":
        assert network.map_size == 4 * size // stride_px


@pytest.mark.parametrize(
    "model",
    [
        TINY,
        dataclasses.replace(TINY, mask_head="fused", object_pooling="box"),
        ModelSpec(arch="vit-hybrid-small/8", mask_head="pyramid", object_pooling="box"),
    ],
    ids=["convolutional", "fused", "pyramid"],
)
@pytest.mark.parametrize("size", [32, 48])
def test_a_batch_gives_what_its_items_give_alone(model: ModelSpec, size: int) -> None:
    torch.manual_seed(0)
    network = MALNetwork(model, size).eval()
    image, box, area = inputs(5, size)
    with torch.inference_mode():
        together = network(image, box, area)
        assert together.shape == (5, network.map_size, network.map_size)
        for i in range(5):
            alone = network(image[i : i + 1], box[i : i + 1], area[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_size_of_the_object_decides_the_scale_of_the_features() -> None:
    network = build()
    image, box, _ = inputs(1, 32)
    with torch.inference_mode():
        maps = [network(image, box, torch.tensor([area])) for area in (100.0, 5000.0, 50_000.0)]
        assert not torch.equal(maps[0], maps[1])
        assert not torch.equal(maps[1], maps[2])
        network.is_scaled_by_size = False
        assert torch.equal(network(image, box, torch.tensor([100.0])), maps[1])


@pytest.mark.parametrize(
    ("stages", "frozen", "trained"),
    [
        ([-1], [], ["patch_embed", "blocks.0", "blocks.11"]),
        ([0], ["patch_embed", "pos_embed", "cls_token"], ["blocks.0"]),
        ([2], ["patch_embed", "blocks.0", "blocks.1"], ["blocks.2", "blocks.11"]),
        ([3, 12], ["blocks.2", "blocks.11"], ["patch_embed", "blocks.1", "pos_embed"]),
    ],
    ids=str,
)
def test_frozen_stages(stages: list[int], frozen: list[str], trained: list[str]) -> None:
    with torch.device("meta"):
        network = MALNetwork(dataclasses.replace(TINY, frozen_stages=stages), 32)
    for name, parameter in network.backbone.named_parameters():
        if any(f"{name}.".startswith(f"{part}.") for part in frozen):
            assert not parameter.requires_grad, name
        if any(f"{name}.".startswith(f"{part}.") for part in trained):
            assert parameter.requires_grad, name


def test_a_frozen_backbone_trains_the_heads_only() -> None:
    with torch.device("meta"):
        network = MALNetwork(dataclasses.replace(TINY, freeze_backbone=True), 32)
    trained = {n.partition(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert trained == {"mask_head", "roi_head"}
