"""The profile counts every moment once, in the innermost part."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_sets import training_spec, write_tiny_set

from mal.stages import run_train
from mal.training.step_profile import StepProfile

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_a_part_does_not_count_what_is_inside_it(tmp_path: Path, clock: list[float]) -> None:
    profile = StepProfile(tmp_path, CPU)
    clock[0] = 1
    with profile.profile("[LightningModule]MALModule.optimizer_step"):
        clock[0] = 3
        with profile.profile("student"):
            clock[0] = 7
        with profile.profile("something of Lightning's"):
            clock[0] = 8
    clock[0] = 10
    profile.describe()
    assert dict(profile.seconds) == {"rest": 3, "optimiser": 3, "student": 4}
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["parts"]["student"] == {"seconds": 4, "times": 1}


def test_the_table_has_the_longest_part_first(tmp_path: Path, clock: list[float]) -> None:
    profile = StepProfile(tmp_path, CPU)
    with profile.profile("teacher"):
        clock[0] = 3
    clock[0] = 4
    profile.start("student")
    assert [line.split()[:3] for line in profile.summary().splitlines()[1:]] == [
        ["teacher", "3.00", "75.0%"],
        ["rest", "1.00", "25.0%"],
        ["all", "4.00"],
    ]


def test_a_profiled_training_tells_where_its_time_went(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mal"), "propagate", True)
    data = write_tiny_set(tmp_path / "set")
    plain = run_train(training_spec(data, tmp_path / "plain", val=data))
    with caplog.at_level(logging.INFO, "mal"):
        profiled = run_train(training_spec(data, tmp_path / "profiled", "profile=true", val=data))
    weights = [
        torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (plain, profiled)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    parts = json.loads((profiled.results_dir / "profile.json").read_text())["parts"]
    expected = {"loading", "student", "teacher", "CRF", "backward", "optimiser", "validation"}
    assert expected <= parts.keys()
    assert parts["student"]["times"] == parts["optimiser"]["times"] == 6
    assert parts["validation"]["times"] == 2
    total_s = sum(part["seconds"] for part in parts.values())
    assert total_s < profiled.metrics["train_time_s"] + 1
    assert "CRF" in caplog.text
    assert not (plain.results_dir / "profile.json").exists()
