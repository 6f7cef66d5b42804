"""Two nodes of two processes each do what one process does, and end together."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from node_processes import (
    END_TIMEOUT_S,
    Place,
    Run,
    is_alive,
    loopback,
    pytorchjob_v1,
    run_to_end,
    running,
    trainer_v2,
    two_namespaces,
)
from tiny_sets import HYBRID, TINY_VIT, TinySet, training_overrides, training_spec, write_tiny_set
from torch import Tensor

from mal.spec import load_spec
from mal.stages import TrainResult, run_evaluate, run_inference, run_train

pytestmark = pytest.mark.timeout(1200)  # several starts of six processes, on a machine in use

# Twelve boxes are three global batches of four: a step of two of them and a step of one.
GLOBAL_BATCH = 4
SETTINGS = (
    *TINY_VIT,
    "train.num_epochs=6",
    "train.lr=3e-4",
    "train.accum_grad_batches=2",
    "train.validation_interval=3",
    "train.checkpoint_interval_unit=step",
    "train.checkpoint_interval=2",
    "train.mask_thres=[0.9]",  # below it the masks of so short a training are the boxes
    "model.teacher_momentum=0.5",
)
# Sums of floats in another order made 3e-7 of a figure; one pixel of a mask would make 3e-4.
CURVE_TOLERANCE = 1e-3
# DDP sorts its buckets anew after a process's first step, and sums in another order: 4e-6.
WEIGHT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Trained:
    """What a training left, and what its nodes told."""

    folder: Path
    told: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / "mal_model_latest.pth"

    def curve(self) -> list[dict[str, float]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(s).items() if k != "epoch_time_s"} for s in lines]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, cache: None) -> TinySet:
    return write_tiny_set(tmp_path_factory.mktemp("set"), num_images=6)


@pytest.fixture(scope="module")
def odd_data(data: TinySet) -> TinySet:
    """Seven boxes: no two ranks' shares need be alike."""
    document = data.document()
    del document["annotations"][7:]
    return data.rewritten(document, "seven.json")


@pytest.fixture(scope="module")
def one_process(data: TinySet, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    spec = training_spec(
        data, tmp_path_factory.mktemp("one"), *SETTINGS, f"train.batch_size={GLOBAL_BATCH}",
        val=data, network=(),
    )  # fmt: skip
    return run_train(spec)


@pytest.fixture(
    scope="module", params=[pytest.param("loopback", marks=pytest.mark.thorough), "namespaces"]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "loopback":
        yield loopback()
        return
    with two_namespaces() as namespaces:
        yield namespaces


def arguments(data: TinySet, folder: Path) -> list[str]:
    """Return the command of a training on two nodes of two processes."""
    return ["train", *training_overrides(data, folder, data), *SETTINGS, "train.batch_size=1"]


@pytest.fixture(scope="module")
def two_nodes(place: Place, data: TinySet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("two")
    run = run_to_end(arguments(data, folder / "train"), place, folder)
    return Trained(folder / "train", run.told())


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def digest_of(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    for weights in weights_of(checkpoint).values():
        digest.update(weights.contiguous().numpy().tobytes())
    return digest.hexdigest()


def difference(mine: Path, theirs: Path) -> float:
    """Return the distance of two networks as a part of their size."""
    first, second = (
        torch.cat([weights.flatten().double() for weights in weights_of(path).values()])
        for path in (mine, theirs)
    )
    return float((first - second).norm() / second.norm())


def evaluation(checkpoint: Path, data: TinySet, folder: Path, *more: str) -> list[str]:
    return [
        f"evaluate.checkpoint={checkpoint}",
        f"evaluate.results_dir={folder}",
        f"dataset.val_ann_path={data.annotations}",
        f"dataset.val_img_dir={data.images}",
        "train.mask_thres=[0.9]",
        "evaluate.batch_size=1",
        "device=cpu",
        "dataset.num_workers_per_gpu=0",
        *more,
    ]


@pytest.mark.slow
def test_two_nodes_learn_what_one_process_learns(
    two_nodes: Trained, one_process: TrainResult
) -> None:
    alone = Trained(one_process.results_dir, "").curve()
    together = two_nodes.curve()
    assert len(together) == len(alone) == 6
    for mine, theirs in zip(together, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=CURVE_TOLERANCE)
    assert together[-1]["val_mIoU"] != pytest.approx(together[-1]["val_box_iou"], abs=1e-3)


@pytest.mark.slow
def test_all_ranks_end_with_the_weights_of_the_checkpoint(two_nodes: Trained) -> None:
    digest = digest_of(two_nodes.checkpoint)
    assert f"all 4 ranks have the same weights, sha256 {digest[:12]}" in two_nodes.told


@pytest.mark.slow
def test_validation_over_all_ranks_gives_the_figure_of_one_process(
    two_nodes: Trained, data: TinySet, tmp_path: Path
) -> None:
    spec = load_spec("evaluate", {}, evaluation(two_nodes.checkpoint, data, tmp_path))
    mean_iou = run_evaluate(spec).metrics["mIoU"]
    assert two_nodes.curve()[-1]["val_mIoU"] == pytest.approx(mean_iou, abs=1e-6)


@pytest.mark.slow
def test_evaluation_counts_every_instance_once(
    one_process: TrainResult, odd_data: TinySet, tmp_path: Path
) -> None:
    alone = evaluation(one_process.checkpoint, odd_data, tmp_path / "one")
    together = evaluation(one_process.checkpoint, odd_data, tmp_path / "two")
    run_evaluate(load_spec("evaluate", {}, alone))
    run_to_end(["evaluate", *together], loopback(), tmp_path, dialect=pytorchjob_v1)
    files = [tmp_path / name / "metrics.json" for name in ("one", "two")]
    assert json.loads(files[1].read_text())["num_instances"] == 7
    assert files[1].read_bytes() == files[0].read_bytes()


@pytest.mark.slow
def test_inference_writes_the_file_of_one_process(
    one_process: TrainResult, odd_data: TinySet, tmp_path: Path
) -> None:
    def overrides(name: str) -> list[str]:
        return [
            f"inference.checkpoint={one_process.checkpoint}",
            f"inference.results_dir={tmp_path / name}",
            f"inference.ann_path={odd_data.annotations}",
            f"inference.img_dir={odd_data.images}",
            "inference.label_dump_path=labels.json",
            "inference.batch_size=1",
            "train.mask_thres=[0.9]",
            "device=cpu",
        ]

    run_inference(load_spec("inference", {}, overrides("one")))
    run_to_end(["inference", *overrides("two")], loopback(), tmp_path, dialect=trainer_v2)
    files = [tmp_path / name / "labels.json" for name in ("one", "two")]
    labels = json.loads(files[1].read_text())["annotations"]
    assert [label["id"] for label in labels] == list(range(1, 8))
    assert files[1].read_bytes() == files[0].read_bytes()


def latest_step(folder: Path) -> int:
    """Return the step of the checkpoint to go on from; it must be one that can be read."""
    latest = folder / "mal_model_latest.pth"
    if not latest.exists():
        return 0
    step: int = torch.load(latest.resolve(), weights_only=True)["global_step"]
    return step


def last_status(folder: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((folder / "status.json").read_text().splitlines()[-1])
    return status


def end_of(run: Run, pids: list[int]) -> list[int]:
    """Return the exit codes of the nodes; no process may be left, nor take longer than allowed."""
    codes = run.wait(END_TIMEOUT_S)
    assert not any(is_alive(pid) for pid in pids), run.told()
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("place", ["loopback"], indirect=True)
def test_a_run_that_lost_a_rank_and_then_was_stopped_ends_with_the_same_weights(
    two_nodes: Trained, place: Place, data: TinySet, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    command = arguments(data, folder)
    with running(command, place, tmp_path / "killed") as run:
        run.wait_until(lambda: latest_step(folder) >= 2)
        pids = [pid for node in run.nodes for pid in node.worker_pids()]
        os.kill(pids[3], signal.SIGKILL)
        assert end_of(run, pids) == [2, 2], run.told()
    told = "Rank 3 of 4 (node 1) was killed by SIGKILL. Did it run out of memory?"
    assert f"mal: node 1 failed: {told}" in run.nodes[0].told()
    assert f"mal: {told}" in run.nodes[1].told()
    assert "Traceback" not in run.told()
    assert last_status(folder)["status"] == "FAILURE"
    killed_at = latest_step(folder)

    with running(command, place, tmp_path / "stopped") as run:
        run.wait_until(lambda: latest_step(folder) > killed_at)
        pids = [pid for node in run.nodes for pid in node.worker_pids()]
        run.nodes[1].process.send_signal(signal.SIGTERM)
        assert end_of(run, pids) == [143, 143], run.told()
    assert all("mal: stopped by SIGTERM. Run the same" in node.told() for node in run.nodes)
    assert "Traceback" not in run.told()
    assert killed_at < latest_step(folder) < latest_step(two_nodes.folder)

    run_to_end(command, place, tmp_path / "finished")
    resumed = Trained(folder, "")
    assert [record["step"] for record in resumed.curve()] == [2, 4, 6, 8, 10, 12]
    assert resumed.curve()[-1] == pytest.approx(two_nodes.curve()[-1], rel=CURVE_TOLERANCE)
    assert difference(resumed.checkpoint, two_nodes.checkpoint) < WEIGHT_TOLERANCE


@pytest.mark.slow
def test_what_is_wrong_on_one_node_is_told_on_all(
    one_process: TrainResult, data: TinySet, tmp_path: Path
) -> None:
    present = evaluation(one_process.checkpoint, data, tmp_path / "two")
    absent = evaluation(tmp_path / "absent.pth", data, tmp_path / "two")
    commands = [["evaluate", *present], ["evaluate", *absent]]
    with running(commands, loopback(), tmp_path, num_processes=1) as run:
        assert run.wait(END_TIMEOUT_S + 60) == [2, 2], run.told()
    problem = f"Cannot read the file {tmp_path / 'absent.pth'}: "
    assert f"mal: node 1 failed: {problem}" in run.nodes[0].told()
    assert f"mal: {problem}" in run.nodes[1].told()


def test_two_nodes_train_a_network_with_running_statistics(data: TinySet, tmp_path: Path) -> None:
    # Batch norms gather other statistics on each rank: all must measure with the first one's.
    folder = tmp_path / "train"
    settings = ("train.num_epochs=4", "train.lr=3e-4", "train.mask_thres=[0.6]")
    command = ["train", *HYBRID, *training_overrides(data, folder, data), *settings]
    run = run_to_end(command, loopback(), tmp_path, num_processes=1)
    trained = Trained(folder, run.told())
    digest = digest_of(trained.checkpoint)
    assert f"all 2 ranks have the same weights, sha256 {digest[:12]}" in trained.told
    overrides = evaluation(trained.checkpoint, data, tmp_path / "one", "train.mask_thres=[0.6]")
    measured = run_evaluate(load_spec("evaluate", {}, overrides)).metrics
    last = trained.curve()[-1]
    assert last["val_mIoU"] == pytest.approx(measured["mIoU"], abs=1e-6)
    assert last["val_mIoU"] > last["val_box_iou"] + 0.01
