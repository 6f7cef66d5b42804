"""A finished run that is asked for more goes on, and one that is asked for less trains nothing."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from tiny_sets import (
    HYBRID,
    TINY_VIT,
    TinySet,
    training_overrides,
    training_spec,
    write_set_of_seven,
)

from mal.cli import main
from mal.errors import SpecError
from mal.stages import TrainResult, run_train

# By default learning rates follow the length of the run; so they do not.
CONSTANT_LR = "train.min_lr_rate=1"


@pytest.fixture
def tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    return write_set_of_seven(tmp_path / "set")


def latest_name(folder: Path) -> str:
    return (folder / "mal_model_latest.pth").resolve().name


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mtime_ns for path in folder.glob("*.pth")}


def has_same_weights(mine: TrainResult, theirs: TrainResult) -> bool:
    first, second = (
        torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (mine, theirs)
    )
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@dataclass(frozen=True)
class Course:
    """How a run is prolonged: the steps that are asked for in turn, and the checkpoints of then."""

    steps: Sequence[int]
    names: Sequence[str]
    network: Sequence[str] = HYBRID
    overrides: Sequence[str] = ()


COURSES = {
    "inside epochs": Course((3, 6, 14), ("000_step_00003", "001_step_00006", "003_step_00014")),
    "accumulated": Course(
        (1, 3), ("000_step_00001", "001_step_00003"), overrides=("train.accum_grad_batches=2",)
    ),
    "after an epoch": Course(
        (4, 5), ("001_step_00004", "001_step_00005"), TINY_VIT, ("model.vit_dpr=0.3",)
    ),
}


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES.keys())
@pytest.mark.parametrize("is_given", [False, True], ids=["same folder", "given checkpoint"])
def test_a_prolonged_run_ends_as_one_that_was_as_long_from_the_start(
    tiny_set: TinySet, tmp_path: Path, course: Course, is_given: bool
) -> None:
    def train(folder: Path, num_steps: int, *more: str) -> TrainResult:
        settings = (CONSTANT_LR, f"train.max_steps={num_steps}", *course.overrides, *more)
        return run_train(training_spec(tiny_set, folder, *settings, network=course.network))

    whole = train(tmp_path / "whole", course.steps[-1])
    folder, given = tmp_path / "run", list[str]()
    for num_steps, name in zip(course.steps, course.names, strict=True):
        run = train(folder, num_steps, *given)
        assert latest_name(run.results_dir) == f"mal_model_epoch_{name}.pth"
        assert run.metrics["num_steps"] == num_steps
        if is_given:
            folder = tmp_path / f"after {num_steps}"
            given = [f"train.resume_training_checkpoint_path={run.checkpoint}"]
    assert has_same_weights(run, whole)
    assert run.metrics["num_epochs"] == whole.metrics["num_epochs"]


def test_a_prolonged_run_keeps_a_better_model_of_before(tiny_set: TinySet, tmp_path: Path) -> None:
    def train(num_steps: int, *more: str) -> TrainResult:
        settings = (f"train.max_steps={num_steps}", *more)
        return run_train(training_spec(tiny_set, tmp_path / "run", *settings, val=tiny_set))

    best = train(3).best_checkpoint.resolve()
    # So that no later figure is better.
    content = torch.load(best, weights_only=True)
    content["mal_position"]["best_figure"] = 1.0
    torch.save(content, best)
    prolonged = train(6)
    assert prolonged.best_checkpoint.resolve() == best
    assert latest_name(prolonged.results_dir) == "mal_model_epoch_001_step_00006.pth"
    records = (prolonged.results_dir / "metrics.jsonl").read_text().splitlines()
    places = [(record["epoch"], record["step"]) for record in map(json.loads, records)]
    assert places == [(1, 3), (1, 4), (2, 6)]


@pytest.mark.parametrize(
    "target",
    ["train.max_steps=6", "train.max_steps=5", "train.max_steps=2", "train.num_epochs=1"],
)
def test_a_run_that_has_trained_enough_trains_nothing_says_so_and_succeeds(
    tiny_set: TinySet, tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    first = run_train(training_spec(tiny_set, folder, "train.max_steps=6", val=tiny_set))
    before, spec = files_of(folder), (folder / "experiment.yaml").read_text()
    record = (folder / "metrics.jsonl").read_text()
    with caplog.at_level(logging.INFO, "mal"):
        again = run_train(training_spec(tiny_set, folder, target, val=tiny_set))
    assert files_of(folder) == before
    assert (folder / "experiment.yaml").read_text() == spec
    assert (folder / "metrics.jsonl").read_text() == record
    assert "nothing is left to train" in caplog.text
    assert {**first.metrics, "train_time_s": 0} == {**again.metrics, "train_time_s": 0}
    status = (folder / "status.json").read_text().splitlines()
    assert json.loads(status[-1])["status"] == "SUCCESS"


def test_less_than_was_trained_ends_with_exit_code_zero(tiny_set: TinySet, tmp_path: Path) -> None:
    arguments = [*HYBRID, *training_overrides(tiny_set, tmp_path / "run")]
    for num_steps in (5, 5, 3):
        assert main(["train", *arguments, f"train.max_steps={num_steps}"]) == 0
        assert latest_name(tmp_path / "run") == "mal_model_epoch_001_step_00005.pth"


def test_a_given_checkpoint_that_has_trained_enough_is_an_error_where_no_model_is(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    other = run_train(training_spec(tiny_set, tmp_path / "other", "train.max_steps=3")).checkpoint
    given = f"train.resume_training_checkpoint_path={other}"
    with pytest.raises(SpecError, match="must have steps left to train, got 3 done of 2"):
        run_train(training_spec(tiny_set, tmp_path / "run", given, "train.max_steps=2"))


def test_which_of_two_checkpoints_a_run_goes_on_from_is_said(
    tiny_set: TinySet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = run_train(training_spec(tiny_set, tmp_path / "other", "train.max_steps=1")).checkpoint
    given = f"train.resume_training_checkpoint_path={other}"
    for num_steps, source in ((2, str(other)), (3, "mal_model_epoch_000_step_00002.pth")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "mal"):
            spec = training_spec(tiny_set, tmp_path / "run", given, f"train.max_steps={num_steps}")
            run_train(spec)
        assert f"resuming {source}" in caplog.text
        is_overruled = num_steps == 3
        assert (f"not {other}" in caplog.text) is is_overruled


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["device=cuda"], "device must be cpu"),
        (["dataset.train_ann_path=absent.json"], "absent.json"),
        (["dataset.crop_size=64"], "dataset.crop_size: 32 -> 64"),
        (["train.resume_training_checkpoint_path=FOREIGN"], "got a foreign one"),
    ],
    ids=["device", "data", "network", "checkpoint"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="device=cuda would be no mistake")
def test_a_run_that_cannot_start_leaves_the_spec_of_the_model_that_is_there(
    tiny_set: TinySet,
    tmp_path: Path,
    overrides: Sequence[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    arguments = [*HYBRID, *training_overrides(tiny_set, folder), "train.max_steps=1"]
    assert main(["train", *arguments]) == 0
    spec = (folder / "experiment.yaml").read_text()
    foreign = folder / "foreign.pth"
    weights = torch.load(folder / "mal_model_latest.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, foreign)
    changes = [override.replace("FOREIGN", str(foreign)) for override in overrides]
    capsys.readouterr()
    assert main(["train", *arguments, "train.max_steps=9", *changes]) == 2
    assert said in capsys.readouterr().err
    assert (folder / "experiment.yaml").read_text() == spec
    status = (folder / "status.json").read_text().splitlines()
    assert json.loads(status[-1])["status"] == "FAILURE"
    assert main(["train", *arguments, "train.max_steps=2"]) == 0
    assert yaml.safe_load((folder / "experiment.yaml").read_text())["train"]["max_steps"] == 2
