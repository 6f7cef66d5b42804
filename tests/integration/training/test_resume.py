"""A run that was stopped goes on as if it had not been: bitwise the same weights on a CPU."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny_sets import (
    HYBRID,
    TINY_VIT,
    TinySet,
    training_overrides,
    training_spec,
    write_set_of_seven,
)
from torch import Tensor

from mal.stages import run_train

STEPWISE = ("train.checkpoint_interval_unit=step", "train.checkpoint_interval=1")
CACHED = (
    *TINY_VIT,
    "model.freeze_backbone=true",
    "train.cached_crops=7",
    "dataset.window_rate=[1.2, 1.8]",
)


@pytest.fixture
def tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    return write_set_of_seven(tmp_path / "set")


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def differing(mine: Path, theirs: Path) -> list[str]:
    first, second = weights_of(mine), weights_of(theirs)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize(
    ("network", "overrides"),
    [
        (HYBRID, ()),
        (HYBRID, ("train.accum_grad_batches=2",)),
        (HYBRID, ("train.accum_grad_batches=3", "train.max_steps=3")),
        (HYBRID, ("train.max_steps=6", "train.warmup_rate=0.3")),
        (TINY_VIT, ("model.vit_dpr=0.3", "model.teacher_momentum=0.5", "train.max_steps=3")),
        (CACHED, ("model.vit_dpr=0.3", "train.max_steps=5", "train.checkpoint_interval=2")),
        pytest.param(TINY_VIT, ("train.compile=true", "train.max_steps=3"), marks=pytest.mark.slow),
    ],
    ids=[
        "hybrid",
        "accumulated",
        "accumulated steps",
        "by steps",
        "dropped paths",
        "cached",
        "compiled",
    ],
)
def test_a_run_resumed_from_any_of_its_checkpoints_ends_with_the_same_weights(
    tiny_set: TinySet, tmp_path: Path, network: Sequence[str], overrides: Sequence[str]
) -> None:
    whole = tmp_path / "whole"
    settings = (*STEPWISE, *overrides)
    final = run_train(training_spec(tiny_set, whole, *settings, network=network)).checkpoint
    written = sorted(whole.glob("mal_model_epoch_*.pth"))
    assert len(written) >= 2
    for place in written[:-1]:
        resumed = tmp_path / place.stem
        spec = training_spec(
            tiny_set,
            resumed,
            *settings,
            f"train.resume_training_checkpoint_path={place}",
            network=network,
        )
        again = run_train(spec).checkpoint
        assert again.resolve().name == final.resolve().name, place.name
        assert differing(again, final) == [], place.name


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_processes_change_nothing(
    tiny_set: TinySet, tmp_path: Path, num_workers: int
) -> None:
    workers = f"dataset.num_workers_per_gpu={num_workers}"
    inline = run_train(training_spec(tiny_set, tmp_path / "inline", *STEPWISE)).checkpoint
    place = sorted((tmp_path / "inline").glob("mal_model_epoch_*.pth"))[4]
    resumed = run_train(
        training_spec(
            tiny_set,
            tmp_path / "resumed",
            workers,
            f"train.resume_training_checkpoint_path={place}",
        )
    ).checkpoint
    assert differing(resumed, inline) == []


def test_the_record_of_a_resumed_run_has_one_line_an_epoch(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run_train(training_spec(tiny_set, whole, *STEPWISE, val=tiny_set))
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    # As a kill after the fifth step leaves it, once with and once without the second epoch's line.
    for kept in (1, 2):
        resumed = tmp_path / f"kept {kept}"
        shutil.copytree(whole, resumed, symlinks=True)
        for path in sorted(resumed.glob("mal_model_epoch_*.pth"))[5:]:
            path.unlink()
        latest = resumed / "mal_model_latest.pth"
        latest.unlink()
        latest.symlink_to(max(p.name for p in resumed.glob("mal_model_epoch_*.pth")))
        (resumed / "metrics.jsonl").write_text("\n".join(lines[:kept]) + "\n")
        run_train(training_spec(tiny_set, resumed, *STEPWISE, val=tiny_set))
        records = [json.loads(s) for s in (resumed / "metrics.jsonl").read_text().splitlines()]
        assert [(r["epoch"], r["step"]) for r in records] == [(1, 4), (2, 8)]
        assert records[0] == json.loads(lines[0])
        assert all(r["epoch_time_s"] < 100 and "val_mIoU" in r for r in records)


def test_a_finished_run_started_again_changes_nothing_and_gives_its_figures(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    spec = training_spec(tiny_set, tmp_path / "run", val=tiny_set)
    first = run_train(spec)
    before = {p.name: p.stat().st_mtime_ns for p in first.results_dir.glob("*.pth")}
    record = (first.results_dir / "metrics.jsonl").read_text()
    second = run_train(spec)
    assert {p.name: p.stat().st_mtime_ns for p in first.results_dir.glob("*.pth")} == before
    assert (first.results_dir / "metrics.jsonl").read_text() == record
    same = {k: v for k, v in first.metrics.items() if k != "train_time_s"}
    assert {k: v for k, v in second.metrics.items() if k != "train_time_s"} == same


def start_training(tiny_set: TinySet, results: Path, *overrides: str) -> subprocess.Popen[str]:
    arguments = [*HYBRID, *training_overrides(tiny_set, results), *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "mal", "train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end_s
        time.sleep(0.02)


LONG = ("train.num_epochs=12", *STEPWISE, "train.checkpoint_interval=3")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_weights(
    tiny_set: TinySet, tmp_path: Path, seed: int
) -> None:
    whole = run_train(training_spec(tiny_set, tmp_path / "whole", *LONG)).checkpoint
    killed = tmp_path / "killed"
    process = start_training(tiny_set, killed, *LONG)
    wait_until((killed / "mal_model_latest.pth").exists, process)
    time.sleep(random.Random(seed).uniform(0, 0.6))
    process.kill()
    process.communicate()
    resumed = run_train(training_spec(tiny_set, killed, *LONG)).checkpoint
    assert resumed.resolve().name == whole.resolve().name
    assert differing(resumed, whole) == []
    epochs = [json.loads(s)["epoch"] for s in (killed / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 13))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_writes_a_checkpoint_and_says_so_by_its_exit_code(
    tiny_set: TinySet, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    # Only the stop writes checkpoints here.
    overrides = ("train.num_epochs=2000", "train.checkpoint_interval=5000")
    process = start_training(tiny_set, tmp_path / "run", *overrides)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    latest = (tmp_path / "run" / "mal_model_latest.pth").resolve()
    assert f"step_{torch.load(latest, weights_only=True)['global_step']:05d}" in latest.name
    status = (tmp_path / "run" / "status.json").read_text().splitlines()
    assert json.loads(status[-1])["status"] == "FAILURE"
