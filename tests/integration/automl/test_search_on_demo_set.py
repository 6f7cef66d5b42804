"""The search on the demo set from a learning rate a hundred times too low: real trainings, small.

Two searches of the same seed run side by side; one is killed while it trains its fifth trial.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from mal.data.synthetic import generate_demo_dataset
from mal.model.checkpoint import read_checkpoint
from mal.spec import load_spec
from mal.tao.parent_job import parent_model

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[3]
GOOD_LR = 2.5e-4
NUM_TRIALS, KILLED_TRIAL = 12, 5
MIN_GAIN = 0.1
OVERRIDES = (
    f"train.lr={GOOD_LR / 100}", "train.max_steps=60", "dataset.crop_size=48",
    "dataset.num_workers_per_gpu=0", "evaluate.use_flip_test=false", "device=cpu",
)  # fmt: skip


def start_search(demo: Path, folder: Path) -> subprocess.Popen[str]:
    data = [
        f"dataset.{split}_{key}={demo / name}"
        for split in ("train", "val")
        for key, name in (("ann_path", f"{split}.json"), ("img_dir", "images"))
    ]
    command = [
        *(sys.executable, "-m", "mal", "automl", "-e", "recipe:demo"),
        *(*data, *OVERRIDES, f"results_dir={folder}"),
        *("--trials", str(NUM_TRIALS), "--seed", "7"),
    ]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_while_it_trains(process: subprocess.Popen[str], trial: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if f"trial {trial} epoch 1:" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()


def facts_of(folder: Path, *, with_times: bool = False) -> list[dict[str, Any]]:
    """Return what the study file has of each trial."""
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/automl/study.db")
    return [
        {
            "state": trial.state.name,
            "params": trial.params,
            "figures": trial.intermediate_values,
            **({"times": (trial.datetime_start, trial.datetime_complete)} if with_times else {}),
        }
        for trial in study.get_trials()
    ]


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Sequence[Any], str]:
    """Return the whole search, the killed one that went on, what that had before, and its log."""
    folder = tmp_path_factory.mktemp("automl")
    demo = folder / "demo"
    generate_demo_dataset(demo, num_images=24, seed=0)
    with start_search(demo, folder / "whole") as whole:
        with start_search(demo, folder / "killed") as killed:
            kill_while_it_trains(killed, KILLED_TRIAL)
        before = facts_of(folder / "killed", with_times=True)
        with start_search(demo, folder / "killed") as resumed:
            log, _ = resumed.communicate()
        whole_log, _ = whole.communicate()
    assert resumed.returncode == 0, log
    assert whole.returncode == 0, whole_log
    return folder / "whole", folder / "killed", before, log


def test_the_search_beats_the_bad_default(
    searches: tuple[Path, Path, Sequence[Any], str],
) -> None:
    whole, *_ = searches
    facts = facts_of(whole)
    assert len(facts) == NUM_TRIALS
    baseline = max(facts[0]["figures"].values())
    best = max(max(f["figures"].values()) for f in facts if f["state"] == "COMPLETE")
    assert facts[0]["params"]["train.lr"] == pytest.approx(GOOD_LR / 100)
    assert best >= baseline + MIN_GAIN
    spec = load_spec("train", whole / "automl" / "best_spec.yaml")
    assert spec.train.lr > GOOD_LR / 10
    content = read_checkpoint(Path(parent_model(whole / "automl")))
    assert content["mal_position"]["best_figure"] == pytest.approx(best)


def test_a_killed_search_keeps_what_was_finished_and_finds_the_same(
    searches: tuple[Path, Path, Sequence[Any], str],
) -> None:
    whole, killed, before, log = searches
    after = facts_of(killed, with_times=True)
    assert [f["state"] for f in before[: KILLED_TRIAL + 1]].count("RUNNING") == 1
    assert before[KILLED_TRIAL]["state"] == "RUNNING"
    assert after[:KILLED_TRIAL] == before[:KILLED_TRIAL], "finished trials, with their times"
    assert f"trial {KILLED_TRIAL} starts" in log
    assert f"trial {KILLED_TRIAL - 1} starts" not in log
    assert facts_of(killed) == facts_of(whole), "the same seed, the same search"
    best = [
        read_checkpoint(folder / "automl" / "mal_model_best.pth")["state_dict"]
        for folder in (whole, killed)
    ]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_the_results_are_complete(searches: tuple[Path, Path, Sequence[Any], str]) -> None:
    for folder in searches[:2]:
        manifest = json.loads((folder / "automl" / "manifest.json").read_text())
        assert {"best_spec.yaml", "leaderboard.csv", "report.html"} <= manifest["outputs"].keys()
        status = (folder / "automl" / "status.json").read_text().splitlines()
        assert json.loads(status[-1])["status"] == "SUCCESS"
        weights = [p for p in folder.glob("automl/trials/*/*.pth") if not p.is_symlink()]
        assert weights == [(folder / "automl" / "mal_model_best.pth").resolve()]
