"""A training that does not fit ends with the next thing to run, or runs it by itself."""

import gc
import json
import logging
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_sets import (
    TINY_VIT,
    TinySet,
    Trained,
    training_overrides,
    training_spec,
    with_points,
    write_tiny_set,
)
from torch import Tensor

from mal.artifacts import FIRST_RUN_FOLDER
from mal.cli import main
from mal.errors import MemoryShortageError
from mal.model.network import MALNetwork
from mal.stages import memory, run_train
from mal.status import Status

# Crops of the ladder, small enough for a test: 64 -> 48 -> 32.
LARGE, MIDDLE, SMALL = 64, 48, 32
TRUE_LADDER = memory.CROP_STEPS_PX
FALLBACK = "train.oom_fallback=true"

Limit = Callable[..., None]


@pytest.fixture(autouse=True)
def _small_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CROP_STEPS_PX", (MIDDLE, SMALL))


@pytest.fixture
def true_ladder(monkeypatch: pytest.MonkeyPatch, _small_ladder: None) -> None:
    monkeypatch.setattr(memory, "CROP_STEPS_PX", TRUE_LADDER)


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Let networks run out of memory as they would on a device."""
    encode = MALNetwork.encode

    def set_limit(is_too_much: Callable[[Tensor, int], bool]) -> None:
        num_calls = 0

        def encode_within(network: MALNetwork, image_BCSS: Tensor) -> list[Tensor]:
            nonlocal num_calls
            num_calls += 1
            if is_too_much(image_BCSS, num_calls):
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 15.77 GiB."
                )
            return encode(network, image_BCSS)

        monkeypatch.setattr(MALNetwork, "encode", encode_within)

    return set_limit


def larger_than(side_px: int) -> Callable[[Tensor, int], bool]:
    return lambda image, _: image.shape[-1] > side_px


def arguments(data: TinySet, folder: Path, crop_size: int = LARGE, *more: str) -> list[str]:
    crop = f"dataset.crop_size={crop_size}"
    return ["train", *TINY_VIT, *training_overrides(data, folder, data), crop, *more]


def statuses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


def shortages_in(folder: Path) -> list[str]:
    messages = [line["message"] for line in statuses(folder) if line["verbosity"] == "WARNING"]
    return [message for message in messages if "training again" in message]


def saved_crop(path: Path) -> int:
    content = torch.load(path, weights_only=True)
    crop_size = int(content["mal_spec"]["dataset"]["crop_size"])
    side = crop_size // 16
    for role in ("student", "teacher"):
        position = content["state_dict"][f"{role}.backbone.pos_embed"]
        assert position.shape[1] == 1 + side**2
    return crop_size


@pytest.mark.usefixtures("true_ladder")
@pytest.mark.parametrize("fallback", [False, True], ids=["by hand", "by itself"])
def test_the_true_ladder_through_the_command_line(
    data: TinySet, tmp_path: Path, limit: Limit, fallback: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    limit(larger_than(256))
    more = [FALLBACK, "train.max_steps=1"] if fallback else []
    code = main(arguments(data, tmp_path / "run", 512, *more))
    error = capsys.readouterr().err
    if fallback:
        assert code == 0
        assert saved_crop(tmp_path / "run" / "mal_model_latest.pth") == 256
        return
    message = (
        "train failed: CUDA out of memory (tried to allocate 2.00 GiB) at "
        "dataset.crop_size 512 and train.batch_size 2 on cpu. Run again with "
        "dataset.crop_size=384, or set train.oom_fallback=true."
    )
    assert code == 2
    assert error.splitlines()[-1] == f"mal: {message}"
    assert "OutOfMemoryError" not in error
    last = statuses(tmp_path / "run")[-1]
    assert last["status"] == Status.FAILURE
    assert message in last["message"]


def test_it_trains_again_at_the_next_size_that_fits(
    data: TinySet, tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    limit(larger_than(SMALL))
    folder = tmp_path / "run"
    assert main(arguments(data, folder, LARGE, FALLBACK)) == 0
    latest, best = folder / "mal_model_latest.pth", folder / "mal_model_best.pth"
    assert latest.readlink().name == "mal_model_epoch_002_step_00004.pth"
    assert saved_crop(latest) == saved_crop(best) == SMALL
    written = yaml.safe_load((folder / "experiment.yaml").read_text())
    assert written["dataset"]["crop_size"] == SMALL
    assert [message.partition(": ")[2] for message in shortages_in(folder)] == [
        f"training again with dataset.crop_size={size} (train.oom_fallback)"
        for size in (MIDDLE, SMALL)
    ]
    assert statuses(folder)[-1]["status"] == Status.SUCCESS
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [message for message in told if "oom_fallback" in message] == shortages_in(folder)


def test_a_try_that_failed_leaves_no_network_in_memory(
    data: TinySet, tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(larger_than(MIDDLE))
    alive: list[int] = []
    networks: list[weakref.ref[MALNetwork]] = []
    free_memory = memory.free_memory

    def count_after() -> None:
        free_memory()
        alive.append(sum(reference() is not None for reference in networks))

    build = MALNetwork.__init__

    def remember(network: MALNetwork, *args: Any) -> None:
        build(network, *args)
        networks.append(weakref.ref(network))

    monkeypatch.setattr("mal.stages.train.free_memory", count_after)
    monkeypatch.setattr(MALNetwork, "__init__", remember)
    gc.collect()
    run_train(
        training_spec(data, tmp_path / "run", f"dataset.crop_size={LARGE}", FALLBACK,
                      network=TINY_VIT)
    )  # fmt: skip
    assert len(networks) == 2
    assert alive == [0]


def test_out_of_memory_in_mid_run_loses_nothing(
    data: TinySet, tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    folder, frozen = tmp_path / "run", "train.lr=0"
    first = run_train(
        training_spec(data, folder, f"dataset.crop_size={LARGE}", frozen, "train.num_epochs=1",
                      network=TINY_VIT)
    )  # fmt: skip
    trained = torch.load(first.checkpoint, weights_only=True)["state_dict"]
    limit(larger_than(MIDDLE))
    result = run_train(
        training_spec(data, folder, f"dataset.crop_size={LARGE}", frozen, FALLBACK,
                      network=TINY_VIT)
    )  # fmt: skip
    assert any("starting from the student of" in line for line in caplog.messages)
    checkpoint = torch.load(result.checkpoint, weights_only=True)
    assert saved_crop(result.checkpoint) == MIDDLE
    assert checkpoint["global_step"] == 4
    for key, value in checkpoint["state_dict"].items():
        if key.startswith("student.") and key != "student.backbone.pos_embed":
            assert torch.equal(value, trained[key]), key
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [2, 4]


def test_a_run_that_outgrows_memory_after_a_checkpoint_ends_with_right_links(
    data: TinySet, tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    folder = tmp_path / "run"
    seen: list[int] = []

    def is_too_much(image: Tensor, _: int) -> bool:
        seen.append(int(image.shape[-1]))
        return image.shape[-1] == LARGE and (folder / "mal_model_latest.pth").exists()

    limit(is_too_much)
    assert main(arguments(data, folder, LARGE, FALLBACK)) == 0
    assert seen.count(LARGE) > 2
    assert seen[-1] == MIDDLE
    started = [line for line in caplog.messages if "starting from the student" in line]
    assert started == ["starting from the student of mal_model_epoch_001_step_00002.pth"]
    for name in ("mal_model_latest.pth", "mal_model_best.pth"):
        assert saved_crop(folder / name) == MIDDLE
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["val_mIoU"])
    assert f"epoch_{best['epoch']:03d}" in (folder / "mal_model_best.pth").readlink().name
    assert [record["epoch"] for record in records] == [1, 2]


def test_a_restarted_command_goes_on_at_the_size_it_came_down_to(
    data: TinySet, tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    folder = tmp_path / "run"
    limit(larger_than(SMALL))
    assert main(arguments(data, folder, LARGE, FALLBACK, "train.num_epochs=1")) == 0
    limit(lambda *_: False)
    caplog.clear()
    assert main(arguments(data, folder, LARGE, FALLBACK, "train.num_epochs=3")) == 0
    assert saved_crop(folder / "mal_model_latest.pth") == SMALL
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["epoch"] for record in records] == [1, 2, 3]
    assert any(f"chose: dataset.crop_size {SMALL}" in line for line in caplog.messages)
    assert len(shortages_in(folder)) == 2


def test_a_first_run_that_outgrows_memory_begins_anew_at_the_next_size(
    data: TinySet, tmp_path: Path, limit: Limit
) -> None:
    folder = tmp_path / "run"
    first_run = folder / FIRST_RUN_FOLDER / "mal_model_latest.pth"
    limit(lambda image, _: image.shape[-1] == LARGE and first_run.exists())
    assert main(arguments(with_points(data), folder, LARGE, FALLBACK, "train.num_epochs=4")) == 0
    assert saved_crop(first_run) == saved_crop(folder / "mal_model_latest.pth") == MIDDLE


def test_a_restarted_first_run_goes_on_at_the_size_it_came_down_to(
    data: TinySet, tmp_path: Path, limit: Limit
) -> None:
    folder = tmp_path / "run"
    first_run = folder / FIRST_RUN_FOLDER / "mal_model_latest.pth"
    limit(lambda *_: (folder / "estimated_boxes.json").exists())
    assert main(arguments(with_points(data), folder, SMALL)) == 2
    (folder / "estimated_boxes.json").unlink()
    run = json.loads((folder / "run.json").read_bytes())
    run["spec"]["dataset.crop_size"] = MIDDLE  # what had been asked for
    (folder / "run.json").write_text(json.dumps(run))
    limit(lambda *_: False)
    assert main(arguments(with_points(data), folder, MIDDLE, FALLBACK, "train.num_epochs=4")) == 0
    assert saved_crop(first_run) == SMALL
    assert saved_crop(folder / "mal_model_latest.pth") == MIDDLE


def test_without_the_fallback_it_does_not_go_on_at_another_size(
    data: TinySet, tmp_path: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    limit(larger_than(SMALL))
    assert main(arguments(data, folder, LARGE, FALLBACK)) == 0
    assert main(arguments(data, folder, LARGE)) == 2
    assert "checkpoint to resume must be of this network" in capsys.readouterr().err


def test_a_smaller_crop_asked_for_does_not_overwrite_a_larger_run(
    data: TinySet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder, LARGE)) == 0
    assert main(arguments(data, folder, SMALL, FALLBACK)) == 2
    assert saved_crop(folder / "mal_model_latest.pth") == LARGE


def test_after_the_crops_come_smaller_backbones_and_batches(
    data: TinySet, tmp_path: Path, limit: Limit
) -> None:
    limit(lambda image, _: len(image) > 1)
    folder = tmp_path / "run"
    more = ["model.arch=vit-mae-small/16", FALLBACK, "evaluate.batch_size=1"]
    assert main(arguments(data, folder, SMALL, *more)) == 0
    written = yaml.safe_load((folder / "experiment.yaml").read_text())
    assert written["model"]["arch"] == "vit-mae-tiny/16"
    assert written["train"]["batch_size"] == 1
    assert (folder / "mal_model_latest.pth").readlink().name.endswith("epoch_002_step_00008.pth")


def test_a_smaller_backbone_is_left_to_the_user_who_gave_weights(
    data: TinySet, tmp_path: Path, limit: Limit
) -> None:
    small = ["model.arch=vit-mae-small/16", "train.lr=0", "train.max_steps=1"]
    given = run_train(training_spec(data, tmp_path / "a", *small, network=TINY_VIT)).checkpoint
    limit(larger_than(0))
    weights = f"train.pretrained_model_path={given}"
    spec = training_spec(data, tmp_path / "b", *small, FALLBACK, weights, network=TINY_VIT)
    with pytest.raises(MemoryShortageError) as caught:
        run_train(spec)
    assert str(caught.value).endswith(
        "Run again with model.arch=vit-mae-tiny/16 and its weights as train.pretrained_model_path."
    )


def test_features_are_cached_anew_at_the_next_size(
    data: TinySet, tmp_path: Path, limit: Limit
) -> None:
    limit(larger_than(MIDDLE))
    cached = ["model.freeze_backbone=true", "model.mask_head=fused", "train.cached_crops=6"]
    crop = f"dataset.crop_size={LARGE}"
    spec = training_spec(data, tmp_path / "run", *cached, crop, FALLBACK, network=TINY_VIT)
    assert saved_crop(run_train(spec).checkpoint) == MIDDLE


def test_another_failure_is_not_tried_again(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(MALNetwork, "encode", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_train(training_spec(data, tmp_path / "run", FALLBACK, network=TINY_VIT))
    assert not [message for message in shortages_in(tmp_path / "run") if "again" in message]


@pytest.mark.parametrize("action", ["evaluate", "inference"])
def test_a_prediction_that_does_not_fit_names_the_smaller_batch(
    action: str, trained: Trained, tmp_path: Path, limit: Limit,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    limit(lambda image, _: len(image) > 1)
    data = trained.data
    places = {
        "evaluate": [f"dataset.val_ann_path={data.annotations}",
                     f"dataset.val_img_dir={data.images}"],
        "inference": [f"inference.ann_path={data.annotations}",
                      f"inference.img_dir={data.images}"],
    }  # fmt: skip
    checkpoint = f"{action}.checkpoint={trained.result.checkpoint}"
    command = [action, *places[action], checkpoint, f"results_dir={tmp_path}", "device=cpu"]
    assert main([*command, f"{action}.batch_size=3"]) == 2
    error = capsys.readouterr().err
    remedy = f"at {action}.batch_size 3 on cpu. Run again with {action}.batch_size=1."
    assert error.splitlines()[-1].endswith(remedy)
    assert "OutOfMemoryError" not in error
    assert statuses(tmp_path / action)[-1]["status"] == Status.FAILURE
    assert main([*command, f"{action}.batch_size=1"]) == 0


def test_a_damaged_checkpoint_makes_nothing_smaller(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.")
    for key in ("pretrained_model_path", "resume_training_checkpoint_path"):
        folder = tmp_path / key
        assert main(arguments(data, folder, LARGE, FALLBACK, f"train.{key}={damaged}")) == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .startswith(f"mal: checkpoint must be readable by PyTorch, got {damaged}")
        )
        assert [w for w in shortages_in(folder) if "oom_fallback" in w] == []


def test_an_export_whose_library_wraps_the_shortage_says_what_ran_out(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise RuntimeError("can't allocate memory: you tried to allocate 800 bytes.")
        except RuntimeError as error:
            raise torch.onnx.OnnxExporterError("Failed to export the model") from error

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.onnx, "export", fail)
    checkpoint = f"export.checkpoint={trained.result.checkpoint}"
    assert main(["export", checkpoint, f"results_dir={tmp_path}", "device=cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mal: export failed: out of memory (tried to allocate 800 bytes) on cpu. "
        "Use a device with more memory."
    )
