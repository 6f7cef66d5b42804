"""`mal automl`, with trials that take milliseconds."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_searches import use_fake_trials
from fake_trial import final_figure

from mal.artifacts import sha256_of_file
from mal.cli import main
from mal.spec import load_spec
from mal.storage import ResultsFolder
from mal.storage.cache import cache_dir
from mal.tao.parent_job import parent_model

BASELINE_LR = 1e-5


@pytest.fixture(autouse=True)
def _fake_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trials(monkeypatch)
    # An earlier command line of this process logs to the stderr of its own test.
    monkeypatch.setattr(logging.getLogger("mal"), "handlers", [])


def run(results_dir: Path | str, *options: str) -> int:
    keys = (f"train.lr={BASELINE_LR}", "train.num_epochs=4", "device=cpu")
    return main(["automl", *keys, f"results_dir={results_dir}", *options])


def test_space_trials_and_time_are_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--trials", "4", "--range", "train.lr=1e-6:5e-3:log") == 0
    lines = capsys.readouterr().err.splitlines()
    told = [" ".join(line.split()[1:]) for line in lines]
    started = next(i for i, line in enumerate(told) if line.startswith("baseline 0 starts"))
    before = "\n".join(told[:started])
    assert "train.lr: 1e-06 to 0.005, log scale; baseline 1e-05" in before
    assert "train.wd: 1e-06 to 0.1, log scale; baseline 0.0005" in before
    assert "a trial: 4 epochs, 4 steps of 0.1 s and validations of 0.2 s" in before
    assert "budget: at most 4 trials, 1 at a time: that is 4 whole trials" in before


def test_the_default_budget_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    assert "at most 10 trials, 20 epochs of all trials" in capsys.readouterr().err


def test_figures_values_and_places_are_printed_and_a_later_job_finds_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--trials", "5", "--range", "train.lr=1e-6:5e-3:log") == 0
    lines = capsys.readouterr().out.splitlines()
    printed = dict(line.split("=", 1) for line in lines if "=" in line)
    assert float(printed["baseline_mIoU"]) == pytest.approx(final_figure(BASELINE_LR), abs=1e-4)
    assert float(printed["mIoU"]) == pytest.approx(
        final_figure(float(printed["train.lr"])), abs=1e-4
    )
    assert lines[-1] == f"results: {tmp_path / 'automl'}"
    assert Path(parent_model(tmp_path)).read_text() == printed["train.lr"]
    assert load_spec("train", tmp_path / "automl" / "best_spec.yaml").train.lr == float(
        printed["train.lr"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--algorithm", "grid"],
            "algorithm must be one of bayesian, random, hyperband, asha, bohb, got grid",
        ),
        (["--range", "train.seed=1:9"], "train.seed must not be searched"),
        (["train.num_nodes=2"], "train.num_nodes must be 1 to search on one machine"),
        (["--trials", "-1"], "trials of a search must be at least 0"),
        (["--trial", "train.lrr=1"], "train.lrr is not a key of the spec"),
    ],
)
def test_a_mistake_is_exit_2_and_starts_nothing(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("automl/trials/*"))


def test_without_optuna_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tmp_path) == 2
    assert "pip install 'mal[automl]'" in capsys.readouterr().err


def test_a_search_that_finishes_no_trial_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trials", "2", "--range", "train.lr=6e-3:1e-2", "train.lr=7e-3")
    assert run(tmp_path, *options) == 2
    assert "trial 0: train failed: train_loss must be finite" in capsys.readouterr().err
    status = (tmp_path / "automl" / "status.json").read_text().splitlines()
    assert json.loads(status[-1])["status"] == "FAILURE"


def test_a_folder_in_which_a_search_runs_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ResultsFolder(str(tmp_path / "automl")).held():
        assert run(tmp_path) == 2
    assert "results_dir must not be in use" in capsys.readouterr().err
    assert not (tmp_path / "automl" / "study.db").exists()


def test_a_search_in_a_bucket_goes_on_from_another_machine(s3: Any) -> None:
    uri, ranges = "s3://bucket/search", ("--range", "train.lr=1e-6:5e-3:log")
    assert run(uri, "--trials", "3", *ranges) == 0
    shutil.rmtree(cache_dir() / "results")
    assert run(uri, "--trials", "5", *ranges) == 0
    names = {entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    board = s3.get_object(Bucket="bucket", Key="search/automl/leaderboard.csv")["Body"].read()
    assert len(board.decode().splitlines()) == 1 + 5
    assert {
        f"search/automl/{name}"
        for name in ("mal_model_best.pth", "best_spec.yaml", "report.html", "study.db")
    } <= names


def test_another_search_in_a_used_folder_is_refused_and_named_unless_it_may_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = ("--range", "train.lr=1e-6:5e-3:log")
    (tmp_path / "boxes.json").write_text("{}")
    boxes = f"dataset.train_ann_path={tmp_path / 'boxes.json'}"
    assert run(tmp_path, "--trials", "2", *ranges, boxes) == 0
    board = (tmp_path / "automl" / "leaderboard.csv").read_text()
    others = {
        "--range train.lr": ("--range", "train.lr=1e-5:5e-3:log", boxes),
        "train.min_lr_rate": (*ranges, boxes, "train.min_lr_rate=0.5"),
        "dataset.train_ann_path": (*ranges, boxes),
    }
    for told, options in others.items():
        if told.startswith("dataset"):
            (tmp_path / "boxes.json").write_text("{ }")
        assert run(tmp_path, "--trials", "3", *options) == 2
        assert f"{told}: " in capsys.readouterr().err
        assert (tmp_path / "automl" / "leaderboard.csv").read_text() == board
    assert run(tmp_path, "--trials", "3", *ranges, boxes, "train.overwrite=true") == 0
    record, manifest = (
        json.loads((tmp_path / "automl" / name).read_bytes())
        for name in ("run.json", "manifest.json")
    )
    assert record["inputs"] == manifest["inputs"]
    digest = sha256_of_file(tmp_path / "boxes.json")
    assert manifest["inputs"]["dataset.train_ann_path"]["sha256"] == digest
