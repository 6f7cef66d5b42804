"""GPUs that a pod asked for and PyTorch does not see end the work before its first batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mal.artifacts import GPUS_VARIABLE
from mal.distributed import gpus
from mal.errors import SpecError
from mal.runtime import node_devices
from mal.spec import load_spec

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setenv(GPUS_VARIABLE, "8")
    return tmp_path / "version"


def test_the_driver_and_the_need_are_named(blind: Path) -> None:
    blind.write_text(OLD)
    with pytest.raises(SpecError) as refused:
        node_devices(load_spec("train", {}), [0])
    assert "8 GPUs were asked for and PyTorch sees none" in str(refused.value)
    assert "CUDA 13.0 needs driver 580.65.06 or later, and the node has driver 550.54.15" in str(
        refused.value
    )


def test_a_node_without_a_driver_and_a_build_without_cuda_are_named(
    blind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SpecError, match=r"built without CUDA, and this node has no NVIDIA driver"):
        gpus.require_gpus_asked_for()


@pytest.mark.parametrize("number", ["", "0"])
def test_without_gpus_the_cpu_is_used(
    blind: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv(GPUS_VARIABLE, number)
    assert node_devices(load_spec("train", {}), [0]) == [torch.device("cpu")]


def test_a_spec_that_chooses_the_cpu_is_not_asked(blind: Path) -> None:
    spec = load_spec("train", {"device": "cpu"})
    assert node_devices(spec, [0]) == [torch.device("cpu")]
