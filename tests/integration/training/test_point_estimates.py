"""The boxes that a training estimates: from which network, for which set, on how many ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sets import HYBRID, TINY_VIT, TinySet, training_spec, with_points, write_tiny_set

from mal.artifacts import FIRST_RUN_FOLDER
from mal.data.annotations import load_boxes
from mal.data.crop_dataset import ImageReader
from mal.data.size_prior import SizePrior
from mal.errors import AnnotationError, SpecError
from mal.spec import load_spec
from mal.stages import point_training, run_evaluate, run_train
from mal.training.trainer import train_network

ESTIMATES = "estimated_boxes.json"
LATEST = "mal_model_latest.pth"
FROZEN_VIT = (*TINY_VIT, "model.freeze_backbone=true")


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    return write_tiny_set(tmp_path / "set", num_images=4, boxes_per_image=3)


@pytest.fixture
def data(boxes: TinySet) -> TinySet:
    return with_points(boxes)


@pytest.fixture
def first_runs(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """What each first run has gone on from."""
    resumed: list[Path | None] = []

    def train(reader: ImageReader, spec: Any, run: Any, resume_from: Path | None) -> Any:
        resumed.append(resume_from)
        return train_network(reader, spec, run, resume_from)

    monkeypatch.setattr(point_training, "train_network", train)
    return resumed


@pytest.fixture
def trained_boxes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The boxes that each training has learned from, (N, 4)."""
    seen: list[Any] = []

    def train(reader: ImageReader, *arguments: Any) -> Any:
        seen.append(reader.boxes.box_xywh_N4)
        return train_network(reader, *arguments)

    monkeypatch.setattr("mal.stages.train.train_network", train)
    return seen


def forget_training(folder: Path) -> None:
    """Leave what a kill before the run's first checkpoint leaves: estimates and first run."""
    for path in (*folder.glob("mal_model_*.pth"), folder / "metrics.jsonl"):
        path.unlink()


def rows_estimated(folder: Path) -> list[int]:
    estimates = json.loads((folder / ESTIMATES).read_bytes())["estimates"]
    return sorted(row for row, *_ in estimates)


def global_step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def have_same_weights(mine: Path, theirs: Path) -> bool:
    first, second = weights_of(mine), weights_of(theirs)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_second_start_learns_from_the_same_boxes_and_ends_with_the_same_bits(
    data: TinySet, tmp_path: Path, first_runs: list[Path | None]
) -> None:
    spec = training_spec(data, tmp_path / "run")
    whole = run_train(spec).checkpoint.resolve().rename(tmp_path / "whole.pth")
    estimates = (tmp_path / "run" / ESTIMATES).read_bytes()
    forget_training(tmp_path / "run")
    assert have_same_weights(run_train(spec).checkpoint, whole)
    assert (tmp_path / "run" / ESTIMATES).read_bytes() == estimates
    assert first_runs == [None]


def test_several_ranks_go_on_with_a_first_run_and_end_with_equal_weights(
    data: TinySet, tmp_path: Path
) -> None:
    """A training whose ranks end with different weights raises: the first run, and the run."""
    folder = tmp_path / "run"
    run_train(training_spec(data, folder, "train.num_epochs=2"))
    first_run = folder / FIRST_RUN_FOLDER / LATEST
    num_steps = global_step_of(first_run)
    forget_training(folder)
    (folder / ESTIMATES).unlink()
    run_train(training_spec(data, folder, "train.num_epochs=8", "train.num_gpus=2"))
    assert global_step_of(first_run) > num_steps
    assert rows_estimated(folder) == [2, 5, 8, 11]


def draw_box(annotations: list[dict[str, Any]]) -> None:
    x, y, _ = annotations[2]["points"][0]
    annotations[2]["bbox"] = [x - 6, y - 6, 12, 12]


def move_point(annotations: list[dict[str, Any]]) -> None:
    annotations[2]["points"][0][0] += 1


def add_annotation(annotations: list[dict[str, Any]]) -> None:
    annotations.insert(0, annotations[0] | {"id": 99})


@pytest.mark.parametrize("edit", [draw_box, move_point, add_annotation])
def test_an_edited_set_is_estimated_again_and_keeps_its_real_boxes(
    data: TinySet,
    tmp_path: Path,
    first_runs: list[Path | None],
    trained_boxes: list[Any],
    edit: Callable[[list[dict[str, Any]]], None],
) -> None:
    spec = training_spec(data, tmp_path / "run")
    run_train(spec)
    document = data.document()
    edit(document["annotations"])
    data.rewritten(document, data.annotations.name)
    with pytest.raises(SpecError, match=r"dataset\.train_ann_path"):
        run_train(spec)
    run_train(training_spec(data, tmp_path / "run", "train.overwrite=true"))
    assert first_runs == [None, None]
    given_N4 = load_boxes(data.annotations, with_masks=False).box_xywh_N4
    is_real_N = ~np.isnan(given_N4).any(1)
    np.testing.assert_array_equal(trained_boxes[1][is_real_N], given_N4[is_real_N])


@pytest.mark.parametrize(
    "content", ['{"estimates": [[2, [', "[]", '{"estimates": [[0, [1, 1, 5, 5], 0.9]]}'],
    ids=["truncated", "a list", "of an unknown set"],
)  # fmt: skip
def test_kept_boxes_that_cannot_be_used_are_estimated_again(
    data: TinySet, tmp_path: Path, first_runs: list[Path | None], content: str
) -> None:
    spec = training_spec(data, tmp_path / "run", "train.num_epochs=1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ESTIMATES).write_text(content)
    run_train(spec)
    assert len(first_runs) == 1
    assert rows_estimated(tmp_path / "run") == [2, 5, 8, 11]


def test_going_on_from_another_folder_needs_no_first_run(
    boxes: TinySet, data: TinySet, tmp_path: Path, first_runs: list[Path | None]
) -> None:
    trained = run_train(training_spec(boxes, tmp_path / "boxes", "train.num_epochs=1")).checkpoint
    resume = f"train.resume_training_checkpoint_path={trained}"
    run_train(training_spec(data, tmp_path / "run", resume))
    assert first_runs == []


def test_a_frozen_backbone_of_another_folder_finds_what_it_found_there(
    data: TinySet, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    spec = training_spec(data, first, "train.num_epochs=1", "train.seed=3", network=FROZEN_VIT)
    resume = f"train.resume_training_checkpoint_path={run_train(spec).checkpoint}"
    run_train(training_spec(data, second, resume, "train.seed=4", network=FROZEN_VIT))
    assert (first / ESTIMATES).read_bytes() == (second / ESTIMATES).read_bytes()


@pytest.mark.parametrize("network", [HYBRID, TINY_VIT], ids=["hybrid", "ViT"])
def test_a_set_of_points_only_starts_from_a_checkpoint_with_heads(
    boxes: TinySet, tmp_path: Path, network: tuple[str, ...], first_runs: list[Path | None]
) -> None:
    one_epoch = "train.num_epochs=1"
    whole = run_train(training_spec(boxes, tmp_path / "boxes", one_epoch, network=network))
    points = with_points(boxes, kinds=["point"])

    def train_from(checkpoint: Path, name: str) -> None:
        pretrained = f"train.pretrained_model_path={checkpoint}"
        run_train(training_spec(points, tmp_path / name, one_epoch, pretrained, network=network))

    train_from(whole.checkpoint, "from whole")
    assert first_runs == []
    state = weights_of(whole.checkpoint)
    backbone = {key: value for key, value in state.items() if key.startswith("student.backbone")}
    torch.save({"state_dict": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(AnnotationError, match=r"no annotation has a box.*train\.pretrained_model"):
        train_from(tmp_path / "backbone.pth", "from backbone")


def test_a_first_run_of_another_network_is_refused(data: TinySet, tmp_path: Path) -> None:
    folder, one_epoch = tmp_path / "run", "train.num_epochs=1"
    run_train(training_spec(data, folder, one_epoch))
    forget_training(folder)
    (folder / ESTIMATES).unlink()
    with pytest.raises(SpecError, match=r"dataset\.crop_size: 32 -> 48"):
        run_train(training_spec(data, folder, one_epoch, "dataset.crop_size=48"))


def test_validation_of_points_measures_what_evaluation_does(boxes: TinySet, tmp_path: Path) -> None:
    val = with_points(boxes, kinds=["point"])
    spec = training_spec(boxes, tmp_path / "run", "train.mask_thres=[0.45]", val=val)
    result = run_train(spec)
    overrides = [f"evaluate.checkpoint={result.checkpoint}", f"evaluate.results_dir={tmp_path}"]
    base = str(result.results_dir / "experiment.yaml")
    metrics = run_evaluate(load_spec("evaluate", base, overrides)).metrics
    assert result.metrics["val_mIoU"] == pytest.approx(metrics["mIoU"], rel=1e-6)
    assert metrics["mIoU"] > 0


def test_a_sampled_validation_knows_the_sizes_of_its_whole_set(
    boxes: TinySet, data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_with = []

    def keep_prior(_model: Any, reader: ImageReader, _settings: Any, prior: SizePrior) -> Any:
        asked_with.append(prior)
        return reader

    monkeypatch.setattr("mal.stages.train.with_estimated_boxes", keep_prior)
    whole = SizePrior.from_boxes(load_boxes(data.annotations, with_masks=False))
    overrides = ("train.num_epochs=1", "train.max_val_boxes=1")
    run_train(training_spec(boxes, tmp_path / "run", *overrides, val=data))
    assert asked_with == [whole]
