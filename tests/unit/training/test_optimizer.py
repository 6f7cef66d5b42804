"""What is optimised, and how fast, as tables."""

import dataclasses
import math

import pytest
import torch

from mal.model.network import MALNetwork
from mal.spec.experiment import ModelSpec, TrainSpec
from mal.training.optimizer import (
    build_optimizer,
    effective_lr,
    lr_factor,
    warmup_factor,
    window_factor,
)


def test_only_trained_weights_are_optimised_and_only_matrices_are_decayed() -> None:
    model = ModelSpec(arch="vit-mae-tiny/16", frozen_stages=[3], mask_head_hidden_channel=8)
    with torch.device("meta"):
        network = MALNetwork(model, 32)
    optimizer = build_optimizer(network, TrainSpec(wd=0.25, optim_betas=[0.8, 0.95]), 1e-3)
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, plain = (
        {name_of[id(parameter)] for parameter in group["params"]}
        for group in optimizer.param_groups
    )
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert decayed | plain == trained
    assert not decayed & plain
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert "backbone.blocks.5.attn.qkv.weight" in decayed
    assert "mask_head.convs.0.weight" in decayed
    assert "backbone.blocks.0.attn.qkv.weight" not in trained


def test_position_embeddings_are_not_decayed() -> None:
    with torch.device("meta"):
        network = MALNetwork(ModelSpec(arch="vit-mae-tiny/16"), 32)
    plain = build_optimizer(network, TrainSpec(), 1e-3).param_groups[1]["params"]
    kept = {id(parameter) for parameter in plain}
    assert {id(network.backbone.pos_embed), id(network.backbone.cls_token)} <= kept


def test_the_rate_grows_with_boxes_a_step() -> None:
    assert effective_lr(TrainSpec(lr=1e-6, batch_size=4), 8) == pytest.approx(32e-6)


@pytest.mark.parametrize(
    ("step", "settings", "expected"),
    [
        (0, {"warmup_epochs": 1}, 1 / 10),
        (4, {"warmup_epochs": 1}, 5 / 10),
        (9, {"warmup_epochs": 1}, 1.0),
        (10, {"warmup_epochs": 1}, 1.0),
        (55, {"warmup_epochs": 1}, 0.02 + 0.98 / 2),
        (100, {"warmup_epochs": 1}, 0.02),
        (0, {"warmup_epochs": 0}, 1.0),
        (50, {"warmup_epochs": 0, "min_lr_rate": 0.0}, 0.5),
        (0, {"warmup_epochs": 10}, 1 / 100),
        (99, {"warmup_epochs": 10}, 1.0),
        (100, {"warmup_epochs": 10}, 1.0),
        (99, {"warmup_epochs": 20}, 0.5),
        (0, {"warmup_rate": 0.05}, 1 / 5),
        (100, {"warmup_epochs": 0, "min_lr": 0.1}, 0.2),
        (50, {"warmup_epochs": 0, "num_wave": 2.0}, 0.02),
        (100, {"warmup_epochs": 0, "num_wave": 2.0}, 1.0),
        (100, {"warmup_epochs": 0, "num_wave": 0.0}, 1.0),
        (25, {"warmup_epochs": 0, "num_wave": 0.5}, 0.51 + 0.49 * math.cos(math.pi / 8)),
    ],
)
def test_the_rate_of_a_step(step: int, settings: dict[str, float], expected: float) -> None:
    train = dataclasses.replace(TrainSpec(), **settings)  # type: ignore[arg-type]
    factor = lr_factor(step, steps_per_epoch=10, num_steps=100, peak_lr=0.5, train=train)
    assert factor == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
def test_every_step_of_every_run_has_a_rate_above_zero(num_steps: int, warmup_epochs: int) -> None:
    train = TrainSpec(warmup_epochs=warmup_epochs)
    for step in range(num_steps + 1):
        factor = lr_factor(step, steps_per_epoch=1, num_steps=num_steps, peak_lr=1.0, train=train)
        assert 0 < factor <= 1


@pytest.mark.parametrize(
    ("step", "steps", "expected"), [(0, 0, 1), (0, 4, 0.25), (3, 4, 1), (9, 4, 1)]
)
def test_loss_weights_warm_up_from_the_start_of_the_run(
    step: int, steps: int, expected: float
) -> None:
    assert warmup_factor(step, steps) == expected


@pytest.mark.parametrize(
    ("step", "window", "expected"),
    [
        (0, [0.2, 0.4], 0),
        (20, [0.2, 0.4], 0),
        (30, [0.2, 0.4], 0.5),
        (40, [0.2, 0.4], 1),
        (99, [0.2, 0.4], 1),
        (49, [0.5, 0.5], 0),
        (50, [0.5, 0.5], 1),
        (0, [0, 0], 1),
    ],
)
def test_loss_weights_open_with_their_window(
    step: int, window: list[float], expected: float
) -> None:
    assert window_factor(step, 100, window) == pytest.approx(expected)
