"""Cached features: their size is known before, and they train as those of every step do."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import TINY_VIT, TinySet, training_spec, write_tiny_set

from mal.data.batch import CropBatch
from mal.data.crop_dataset import TrainingCrops, select_training_boxes
from mal.data.datamodule import open_image_set
from mal.errors import SpecError
from mal.model.network import MALNetwork
from mal.spec import ExperimentSpec
from mal.training.feature_cache import bytes_per_crop, cached_crop_features
from mal.training.module import MALModule
from mal.training.optimizer import build_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*", "ignore:.*self.trainer.*")

FROZEN = ("model.freeze_backbone=true", "dataset.window_rate=[1.2, 1.8]")
NUM_CROPS, NUM_STEPS = 6, 5
CPU = torch.device("cpu")


@pytest.fixture
def tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    return write_tiny_set(tmp_path / "set")


def spec_of(tiny_set: TinySet, tmp_path: Path, *overrides: str) -> ExperimentSpec:
    settings = (*FROZEN, f"train.cached_crops={NUM_CROPS}", *overrides)
    return training_spec(tiny_set, tmp_path / "run", *settings, network=TINY_VIT)


def crops_of(spec: ExperimentSpec) -> TrainingCrops:
    reader = open_image_set(
        spec.dataset.train_ann_path,
        spec.dataset.train_img_dir,
        key="dataset.train",
        with_masks=spec.train.supervision == "mask",
    )
    return TrainingCrops(reader, select_training_boxes(reader, spec), spec, seed=0)


def network_of(spec: ExperimentSpec) -> MALNetwork:
    torch.manual_seed(0)
    return MALNetwork(spec.model, spec.dataset.crop_size)


@pytest.mark.parametrize("head", ["convolutional", "fused"])
@pytest.mark.parametrize("supervision", ["box", "mask"])
def test_the_room_that_is_asked_for_is_what_is_taken(
    tiny_set: TinySet, tmp_path: Path, head: str, supervision: str
) -> None:
    changes = (f"model.mask_head={head}", f"train.supervision={supervision}")
    spec = spec_of(tiny_set, tmp_path, *changes)
    network = network_of(spec)
    with cached_crop_features(network, crops_of(spec), 40, CPU) as cached:
        files = (tmp_path / "cache" / "features").glob("*/*.npy")
        num_bytes = sum(path.stat().st_size for path in files)
        assert len(cached) == 40
    asked = 40 * bytes_per_crop(network, spec)
    assert 0.9 * asked < num_bytes <= asked


def test_more_features_than_the_limit_are_refused_before_any_is_computed(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    spec = spec_of(tiny_set, tmp_path, "train.feature_cache_gib=0.00001")
    with (
        pytest.raises(SpecError, match=r"feature_cache_gib must be at least .* Raise it, or lower"),
        cached_crop_features(network_of(spec), crops_of(spec), NUM_CROPS, CPU),
    ):
        pass
    assert not (tmp_path / "cache" / "features").exists()


def test_training_on_cached_features_gives_the_weights_of_features_computed_in_every_step(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    spec = spec_of(tiny_set, tmp_path, "model.mask_head=fused", "model.object_pooling=box")
    network = network_of(spec)
    with cached_crop_features(network, crops_of(spec), NUM_CROPS, CPU) as cached:
        arrays = {name: torch.from_numpy(np.array(a)) for name, a in cached.arrays.items()}
    # Neither mirrored nor recoloured: the cache holds the features of the clean crops.
    batch = CropBatch(**arrays)
    online = dataclasses.replace(batch, features_BLDhw=None)
    modules = []
    for given in (batch, online):
        module = MALModule(
            copy.deepcopy(network), spec, seed=0, steps_per_epoch=NUM_STEPS, num_steps=NUM_STEPS
        )
        module.set_training_modes()
        optimizer = build_optimizer(module.student, spec.train, 1e-3)
        for _ in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = module.training_step(given, 0)
            loss.backward()  # type: ignore[no-untyped-call]
            module.optimizer_step(0, 0, optimizer, lambda loss=loss: loss)
        modules.append(module)
    # Features are kept in half precision: 11 bits.
    for part in ("student", "teacher"):
        probs = [
            getattr(m, part)
            .eval()
            .decode(
                network.encode(torch.zeros(6, 3, 32, 32)),
                torch.zeros(6, 3, 32, 32),
                batch.unit_box_B4,
                batch.box_area_B,
            )
            .sigmoid()
            for m in modules
        ]
        torch.testing.assert_close(*probs, rtol=0, atol=0.01)
