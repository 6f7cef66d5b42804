"""How the devices of a machine are shared among trials."""

from __future__ import annotations

import pytest
import torch

from mal.automl.devices import Slot, share_devices
from mal.errors import SpecError
from mal.spec import ExperimentSpec, load_spec


def spec_of(num_gpus: int, device: str = "auto") -> ExperimentSpec:
    return load_spec("train", {}, [f"train.num_gpus={num_gpus}", f"device={device}"])


@pytest.fixture
def _four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def test_one_trial_at_a_time_runs_as_mal_train_would() -> None:
    assert share_devices(spec_of(1, "cpu"), 1, {}) == [Slot()]
    assert share_devices(spec_of(1, "cpu"), 0, {}) == [Slot()]


def test_trials_on_cpus_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    slots = share_devices(spec_of(1, "cpu"), 2, {})
    assert [slot.variables["OMP_NUM_THREADS"] for slot in slots] == ["4", "4"]
    with pytest.raises(SpecError, match=r"at most 4 of train.num_gpus=2 on 8 cores, got 5"):
        share_devices(spec_of(2, "cpu"), 5, {})


@pytest.mark.usefixtures("_four_gpus")
def test_trials_on_gpus_get_their_own_and_meet_at_their_own_port() -> None:
    slots = share_devices(spec_of(2), 0, {})
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0,1", "2,3"]
    assert len({slot.variables["MASTER_PORT"] for slot in slots}) == 2
    assert {slot.overrides for slot in slots} == {("train.gpu_ids=[0, 1]",)}


@pytest.mark.usefixtures("_four_gpus")
def test_gpus_that_the_process_may_not_see_are_not_shared() -> None:
    slots = share_devices(spec_of(1), 2, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["GPU-a", "GPU-b"]
    with pytest.raises(SpecError, match=r"at most 2 .* on 2 GPUs, got 3"):
        share_devices(spec_of(1), 3, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})
