"""What `submit` and `schedule apply` find wrong on this machine, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_api import ApiContent, serving_pipelines_api

from mal.kfp.pipelines.__main__ import main

pytestmark = pytest.mark.integration

BOXES = ["train_images=s3://b/images", "train_annotations=s3://b/boxes.json"]
MASKS = ["val_images=s3://b/images", "val_annotations=s3://b/masks.json"]
STORE = [*BOXES, "store=s3://b/store"]
LABELS = ["images=s3://b/i", "annotations=s3://b/a.json", "model=s3://b/store", "work_dir=s3://b/w"]
SMALL_JOB: dict[str, Any] = {"resources": {"memory": "4Gi"}}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, ApiContent]]:
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("MAL_REGISTRY", "mirror.corp/mal")
    for name in ("KFP_TOKEN", "MAL_TAG", "MAL_DIGESTS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with serving_pipelines_api() as served:
        yield served


def submit(host: str, pipeline: str, *assignments: str) -> int:
    given = [part for each in assignments for part in ("-p", each)]
    return main(["submit", pipeline, *given, "--host", host])


@pytest.mark.parametrize(
    ("pipeline", "assignments", "problem"),
    [
        (
            "auto_label",
            ["train_images=images", BOXES[1]],
            "train_images must be s3:// or minio://, got {here}/images, which is on this machine",
        ),
        (
            "auto_label",
            [BOXES[0], "train_annotations=gs://b/boxes.json"],
            "train_annotations must be s3:// or minio://, got gs://b/boxes.json, which no step can",
        ),
        ("auto_label", [*BOXES, MASKS[0]], "val_annotations must be set, got ''."),
        ("auto_label", [*BOXES, "spec=recipe:scrach"], "recipe must be packaged, got scrach."),
        ("auto_label", [*BOXES, "overrides=train.lrr=1"], "Did you mean train.lr?"),
        ("auto_label", [*BOXES, "overrides=export.opset=1"], "export.opset is not a key"),
        ("auto_label", [*BOXES, "overrides=results_dir=x"], "results_dir must not be overridden"),
        ("auto_label", [*BOXES, "automl_policy=of"], "automl_policy must be a known policy"),
        (
            "retrain",
            [*STORE, "overrides=train.pretrained_model_path=vit.pth"],
            "train.pretrained_model_path must be s3:// or minio://, timm:NAME or a path in the",
        ),
        ("retrain", [*BOXES, "store=models"], "store must be s3:// or minio://, got {here}/models"),
        ("label_only", [*LABELS[:3], "work_dir=w"], "work_dir must be s3:// or minio://"),
        ("label_only", [*LABELS, "overrides=inference.size=1"], "inference.size is not a key"),
        ("tune", [*BOXES, *MASKS, "backend=katip"], "backend must be local or katib, got 'katip'"),
        ("tune", [*BOXES, *MASKS, "ranges=train.lr=2:1"], "train.lr"),
        (
            "tune",
            [*BOXES, *MASKS, "backend=katib", "algorithm=asha"],
            "algorithm must be bayesian or random on Katib, got asha",
        ),
        (
            "tune",
            [*BOXES, *MASKS, "backend=katib", 'job={"resources": {"gpu": 1}}'],
            "job.resources.gpu is not a setting of a job.",
        ),
        ("auto_label_distributed", [*BOXES, "backend=job"], "backend must be"),
        ("auto_label_distributed", [*BOXES, "num_nodes=0"], "job.num_nodes must be from 1"),
        ("auto_label_distributed", [*BOXES, "queue_timeout_s=-1"], "queue_timeout_s must be 0 or"),
        (
            "auto_label_distributed",
            [*BOXES, 'job={"resources": {"memory": "4Gi", "shm_size": "8Gi"}}'],
            "job.resources.shm_size must be below memory",
        ),
        (
            "auto_label_distributed",
            [*BOXES, "backend=trainjob", 'job={"master_port": 2222}'],
            "job.master_port must be left out with backend trainjob",
        ),
        (
            "auto_label_distributed",
            [*BOXES, 'job={"resources": {"gpus_per_node": 2}}'],
            "job.resources.gpus_per_node must be given once",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_found_before_anything_is_sent(
    pipeline: str,
    assignments: list[str],
    problem: str,
    *,
    api: tuple[str, ApiContent],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert submit(api[0], pipeline, *assignments) == 2
    errors = capsys.readouterr().err
    assert problem.format(here=tmp_path) in errors
    assert len(errors.splitlines()) == 1
    assert api[1].requests == []


@pytest.mark.parametrize(
    ("pipeline", "assignments"),
    [
        ("auto_label", [*BOXES, *MASKS, "spec=recipe:small_set"]),
        ("auto_label", [*BOXES, "overrides=train.pretrained_model_path=/weights/in/the/image.pth"]),
        ("auto_label_distributed", [*BOXES, f"job={json.dumps(SMALL_JOB)}"]),
        ("auto_label_distributed", [*BOXES, "backend=trainjob", "gpus_per_node=0"]),
        ("label_only", LABELS),
        ("label_only", [*LABELS, 'overrides=["dataset.crop_size=70"]']),  # a model of patch size 14
        ("retrain", [*STORE, *MASKS]),
        ("tune", [*BOXES, *MASKS, "backend=katib"]),
    ],
)
def test_arguments_without_a_mistake_are_sent(
    pipeline: str, assignments: list[str], api: tuple[str, ApiContent]
) -> None:
    assert submit(api[0], pipeline, *assignments) == 0
    assert len(api[1].entities["runs"]) == 1


def test_all_problems_are_reported_at_once(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["train_images=images", "num_nodes=0", "overrides=train.lrr=1"]
    assert submit(api[0], "auto_label_distributed", BOXES[1], *wrong) == 2
    errors = capsys.readouterr().err
    for problem in ("train_images must be", "job.num_nodes must", "train.lrr is not a key"):
        assert errors.count(problem) == 1


def test_a_schedule_is_checked_as_a_run_is(
    api: tuple[str, ApiContent], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for each in [*BOXES, "store=models"] for part in ("-p", each)]
    command = ["schedule", "apply", "retrain", "--cron", "0 0 * * * *", *given, "--host", api[0]]
    assert main(command) == 2
    assert "store must be s3:// or minio://" in capsys.readouterr().err
    assert api[1].requests == []
