"""`mal train`: what it reads, what it writes, and what it survives."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_sets import TINY_VIT, TinySet, training_spec, write_tiny_set

from mal.cli import main
from mal.errors import AnnotationError, SpecError, StorageError
from mal.labeling.training_free import TrainingFreeModel
from mal.runtime import Interrupted
from mal.stages import run_train
from mal.training.callbacks import Checkpoints


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


def state_of(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def stripped(data: TinySet) -> TinySet:
    document = data.document()
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    return data.rewritten(document, "stripped.json")


def test_training_on_boxes_reads_no_mask(data: TinySet, tmp_path: Path) -> None:
    whole = run_train(training_spec(data, tmp_path / "a")).checkpoint
    without = run_train(training_spec(stripped(data), tmp_path / "b")).checkpoint
    first, second = state_of(whole), state_of(without)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_on_masks_gives_other_weights_and_needs_masks(
    data: TinySet, tmp_path: Path
) -> None:
    boxes = state_of(run_train(training_spec(data, tmp_path / "a")).checkpoint)
    by_mask = "train.supervision=mask"
    masks = state_of(run_train(training_spec(data, tmp_path / "b", by_mask)).checkpoint)
    assert any(not torch.equal(boxes[key], masks[key]) for key in boxes)
    with pytest.raises(AnnotationError, match=r"Cannot train on .* boxes is usable"):
        run_train(training_spec(stripped(data), tmp_path / "c", by_mask))


def test_the_result_folder_holds_what_the_contract_names(data: TinySet, tmp_path: Path) -> None:
    result = run_train(training_spec(data, tmp_path / "run", val=data))
    folder = result.results_dir
    assert {p.name for p in folder.glob("*.pth")} == {
        "mal_model_epoch_001_step_00002.pth",
        "mal_model_epoch_002_step_00004.pth",
        "mal_model_latest.pth",
        "mal_model_best.pth",
    }
    latest = folder / "mal_model_latest.pth"
    assert str(latest.readlink()) == "mal_model_epoch_002_step_00004.pth"
    assert (folder / "mal_model_best.pth").readlink().parent == Path()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    best = max(records, key=lambda record: record["val_mIoU"])
    best_name = (folder / "mal_model_best.pth").readlink().name
    assert f"epoch_{best['epoch']:03d}" in best_name
    assert list((folder / "lightning_logs").glob("events*"))
    prefixes = {".".join(key.split(".")[:2]) for key in state_of(latest)}
    parts = ("backbone", "mask_head", "roi_head")
    assert prefixes == {f"{role}.{part}" for role in ("student", "teacher") for part in parts}


def test_without_validation_masks_the_best_is_the_latest(data: TinySet, tmp_path: Path) -> None:
    result = run_train(training_spec(data, tmp_path / "run", val=stripped(data)))
    assert result.best_checkpoint.resolve() == result.checkpoint.resolve()
    assert "val_mIoU" not in result.metrics
    assert "is the latest" in (result.results_dir / "status.json").read_text()


def test_a_validation_set_outside_the_limits_is_no_failure(data: TinySet, tmp_path: Path) -> None:
    limits = "evaluate.min_box_area=1e9"
    result = run_train(training_spec(data, tmp_path / "run", limits, val=data))
    assert "val_mIoU" not in result.metrics
    assert result.best_checkpoint.exists()


@pytest.mark.parametrize(
    ("overrides", "last"),
    [
        (["train.checkpoint_interval=50"], "epoch_002_step_00004"),
        (["train.batch_size=64"], "epoch_002_step_00002"),
        (["train.max_steps=3"], "epoch_001_step_00003"),
        (["train.max_steps=1"], "epoch_000_step_00001"),
        (["train.accum_grad_batches=8"], "epoch_002_step_00002"),
        (
            ["train.checkpoint_interval_unit=step", "train.checkpoint_interval=50"],
            "epoch_002_step_00004",
        ),
    ],
    ids=["rare checkpoints", "large batch", "steps", "one step", "accumulated", "rare by steps"],
)
def test_every_run_ends_with_a_checkpoint(
    data: TinySet, tmp_path: Path, overrides: list[str], last: str
) -> None:
    result = run_train(training_spec(data, tmp_path / "run", *overrides))
    assert result.checkpoint.resolve().name == f"mal_model_{last}.pth"


def test_one_box_is_enough(data: TinySet, tmp_path: Path) -> None:
    document = data.document()
    del document["annotations"][1:]
    one = data.rewritten(document, "one.json")
    result = run_train(training_spec(one, tmp_path / "run", network=TINY_VIT))
    assert all(value.isfinite().all() for value in state_of(result.checkpoint).values())


@pytest.mark.parametrize("cached", [0, 6], ids=["live", "cached"])
def test_an_unreadable_image_gives_way_to_the_next(
    data: TinySet, tmp_path: Path, cached: int
) -> None:
    (data.images / "picture 0.png").write_bytes(b"no picture")
    overrides = ["model.freeze_backbone=true", f"train.cached_crops={cached}"]
    spec = training_spec(data, tmp_path / "run", *overrides, network=TINY_VIT)
    assert run_train(spec).checkpoint.exists()


def test_features_of_several_sizes_cannot_be_cached(data: TinySet, tmp_path: Path) -> None:
    overrides = ["model.freeze_backbone=true", "train.cached_crops=6"]
    with pytest.raises(SpecError, match=r"train\.cached_crops must be 0"):
        run_train(training_spec(data, tmp_path / "run", *overrides))


def test_no_readable_image_is_an_error_that_names_it(data: TinySet, tmp_path: Path) -> None:
    for path in data.images.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(AnnotationError, match="picture"):
        run_train(training_spec(data, tmp_path / "run"))


def test_a_seed_of_minus_one_is_drawn_recorded_and_kept(data: TinySet, tmp_path: Path) -> None:
    def seed_of(folder: Path, *overrides: str) -> int:
        run_train(training_spec(data, folder, "train.seed=-1", "train.num_epochs=1", *overrides))
        content = yaml.safe_load((folder / "experiment.yaml").read_text())
        return int(content["train"]["seed"])

    first, second = seed_of(tmp_path / "a"), seed_of(tmp_path / "b")
    assert first >= 0
    assert first != second
    assert seed_of(tmp_path / "a", "train.num_epochs=2") == first


def test_the_same_seed_gives_the_same_weights(data: TinySet, tmp_path: Path) -> None:
    runs = [
        state_of(run_train(training_spec(data, tmp_path / name, f"train.seed={seed}")).checkpoint)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Refuse larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(data: TinySet, tmp_path: Path) -> None:
    spec = training_spec(data, tmp_path / "run")
    with (
        files_of_at_most(200_000),
        pytest.raises(
            StorageError, match=r"Cannot write the checkpoint to .*/run.*Free disk space"
        ),
    ):
        run_train(spec)
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in left if ".pth" in name]
    last = json.loads((tmp_path / "run" / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "FAILURE"
    assert run_train(spec).checkpoint.exists()


def test_a_foreign_checkpoint_cannot_be_resumed(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_train(training_spec(data, tmp_path / "run"))
    content = torch.load(first.checkpoint, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "foreign.pth")
    spec = str(first.results_dir / "experiment.yaml")
    resume = f"train.resume_training_checkpoint_path={tmp_path / 'foreign.pth'}"
    assert main(["train", "-e", spec, f"train.results_dir={tmp_path / 'b'}", resume]) == 2
    assert "train.pretrained_model_path" in capsys.readouterr().err


@pytest.mark.parametrize("is_remote", [False, True], ids=["local", "s3"])
def test_a_checkpoint_of_the_own_folder_is_a_wish_to_go_back(
    data: TinySet, tmp_path: Path, s3: Any, is_remote: bool
) -> None:
    folder = "s3://bucket/runs/one" if is_remote else str(tmp_path / "run")
    first = run_train(training_spec(data, folder))
    written_ns = first.checkpoint.stat().st_mtime_ns
    for epoch, is_trained_again in ((2, False), (1, True)):
        name = f"mal_model_epoch_00{epoch}_step_0000{2 * epoch}.pth"
        resume = f"train.resume_training_checkpoint_path={folder}/{name}"
        again = run_train(training_spec(data, folder, resume)).checkpoint
        assert again.resolve().name == "mal_model_epoch_002_step_00004.pth"
        assert (again.stat().st_mtime_ns > written_ns) is is_trained_again


def test_the_figure_of_a_validation_has_the_name_that_services_watch(
    data: TinySet, tmp_path: Path
) -> None:
    result = run_train(training_spec(data, tmp_path / "run", val=data))
    status = (result.results_dir / "status.json").read_text().splitlines()
    records = (result.results_dir / "metrics.jsonl").read_text().splitlines()
    watched = [kpi["mIoU"] for kpi in (json.loads(line)["kpi"] for line in status) if kpi]
    recorded = [json.loads(record)["val_mIoU"] for record in records]
    assert watched == [*recorded, recorded[-1]]


def test_what_a_training_lacks_is_named_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"results_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err.removeprefix("mal: ").splitlines()
    assert told == [
        f"{key} must be set, got ''. Write {key}=PATH, or give a root that holds {file} as "
        "train_datasets."
        for key, file in (
            ("dataset.train_img_dir", "images.tar.gz"),
            ("dataset.train_ann_path", "annotations.json"),
        )
    ]


def test_a_run_in_an_s3_folder_goes_on_from_another_machine(
    data: TinySet, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "s3://bucket/runs/one"
    run_train(training_spec(data, folder, "train.num_epochs=2", "train.max_steps=2"))
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other machine"))
    resumed = run_train(training_spec(data, folder))
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    names = ("mal_model_epoch_002_step_00004.pth", "mal_model_latest.pth", "mal_model_best.pth")
    assert {f"runs/one/{name}" for name in names} <= keys
    assert torch.load(resumed.checkpoint, weights_only=True)["global_step"] == 4
    records = (resumed.results_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["epoch"] for record in records] == [1, 2]


def test_a_finished_run_in_an_s3_folder_keeps_its_spec_on_another_machine(
    data: TinySet, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_spec() -> bytes:
        content: bytes = s3.get_object(Bucket="bucket", Key="runs/one/experiment.yaml")[
            "Body"
        ].read()
        return content

    folder = "s3://bucket/runs/one"
    run_train(training_spec(data, folder))
    before = written_spec()
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other machine"))
    run_train(training_spec(data, folder, "train.max_steps=1"))
    assert written_spec() == before


@pytest.mark.parametrize("batch", ["the last of an epoch", "one inside an epoch"])
def test_a_signal_between_two_batches_stops_the_run_after_a_checkpoint(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    # Lightning looks for a signal of its own there, and leaves with exit code 0.
    look = Checkpoints.on_train_batch_end
    num_batches = 2 if batch == "the last of an epoch" else 1

    def look_and_be_asked_to_stop(self: Checkpoints, *arguments: Any) -> None:
        look(self, *arguments)
        if arguments[0].global_step == num_batches:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", look_and_be_asked_to_stop)
    spec = training_spec(data, tmp_path / "run", "train.num_epochs=3")
    with pytest.raises(Interrupted) as interrupt:
        run_train(spec)
    assert interrupt.value.exit_code == 143
    assert (tmp_path / "run" / "mal_model_latest.pth").exists()


def messages_of(folder: Path, verbosity: str) -> list[str]:
    lines = (folder / "status.json").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["message"] for entry in entries if entry["verbosity"] == verbosity]


def test_validation_masks_that_are_the_boxes_choose_no_best(data: TinySet, tmp_path: Path) -> None:
    document = data.document()
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    val = data.rewritten(document, "box_masks.json")
    more = ("train.validation_interval=1",)
    result = run_train(training_spec(data, tmp_path / "run", *more, val=val))
    assert "val_mIoU" not in result.metrics
    assert result.best_checkpoint.resolve() == result.checkpoint.resolve()
    warnings = messages_of(result.results_dir, "WARNING")
    assert any("its masks are the boxes themselves" in message for message in warnings)


def test_a_model_that_loses_to_what_needs_no_training_says_so(
    data: TinySet, tmp_path: Path
) -> None:
    more = ("train.mask_thres=[0.999999]",)  # every mask is empty
    result = run_train(training_spec(data, tmp_path / "run", *more, val=data))
    assert {"val_box_iou", "val_ellipse_iou"} <= result.metrics.keys()
    warnings = messages_of(result.results_dir, "WARNING")
    assert any("not worth using" in message for message in warnings)


def test_the_training_free_masks_of_a_frozen_backbone_are_measured_once(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(TrainingFreeModel):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("mal.stages.train.TrainingFreeModel", Counted)
    more = ("model.freeze_backbone=true", "evaluate.training_free=true",
            "train.validation_interval=1")  # fmt: skip
    spec = training_spec(data, tmp_path / "run", *more, val=data, network=TINY_VIT)
    result = run_train(spec)
    lines = (result.results_dir / "metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line)["val_training_free_iou"] for line in lines]
    assert len(figures) == 2
    assert figures[0] == figures[1]
    assert len(made) == 1
