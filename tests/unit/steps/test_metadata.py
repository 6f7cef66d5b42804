"""The metadata of a step's artifacts."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import snapshots
from kfp_artifact import Artifact

from mal.errors import ArtifactError
from mal.labeling.label_counts import LabelCounts
from mal.registry.model_fetch import FetchedModel
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec
from mal.steps import Step, metadata
from mal.steps import step as step_module

SPLIT = dataclasses.replace(snapshots.SPLIT, images_uri="s3://bucket/images", has_masks=True)
STEP = {"git_commit": "5" * 40, "image_digest": "sha256:55ee"}
BOXES_ONLY = DatasetManifest("c" * 64, SPLIT, None, SPLIT)


@pytest.fixture
def made_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "made_by", lambda: STEP)


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    path = tmp_path / "dataset"
    BOXES_ONLY.write(path)
    return Artifact(str(path), {"pipeline_name": "auto-label"})


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    files = {"mal_model_latest.pth": b"weights", "experiment.yaml": b"train: {lr: 1}\n"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    outputs = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    manifest = {"git_commit": "0123abc", "outputs": outputs}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_metrics_leave_out_what_was_not_measured() -> None:
    metrics = {
        "mIoU": 0.5,
        "mIoU_small": None,
        "AP": float("nan"),
        "num_instances": 4,
        "note": "text",
        "per_category": {"star": {"iou": 0.25, "count": 4}, "ring": {"iou": None, "count": 0}},
    }
    assert metadata.flat_metrics(metrics) == {
        "mIoU": 0.5,
        "num_instances": 4.0,
        "per category: star": 0.25,
    }


def test_model_metadata_names_code_spec_and_metrics(model_dir: Path) -> None:
    experiment = ExperimentSpec()
    experiment.train.pretrained_model_path = "s3://bucket/mae.pth"
    described = metadata.model_metadata(experiment, model_dir, {"val_mIoU": 0.7}, uri="minio://b/m")
    assert described["git_sha"] == "0123abc"
    assert described["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert described["parent_model_uri"] == "s3://bucket/mae.pth"
    assert described["val_mIoU"] == 0.7
    assert described["train_config_uri"] == "minio://b/m/experiment.yaml"
    spec = (model_dir / "experiment.yaml").read_bytes()
    assert described["train_config_sha256"] == hashlib.sha256(spec).hexdigest()


def test_a_model_names_what_trained_it_and_not_the_step_that_waited(
    model_dir: Path, made_by_step: None
) -> None:
    model = Artifact(str(model_dir))
    described = metadata.model_metadata(ExperimentSpec(), model_dir, {}, uri="")
    step = Step()
    step.write_artifact(model, described)
    assert model.metadata["git_sha"] == "0123abc"
    assert "image_digest" not in model.metadata
    step.write_artifact(model, described | metadata.image_metadata("mal/train:1"))
    assert "image_digest" not in model.metadata
    image = metadata.image_metadata("registry:5000/mal/train@sha256:12ab")
    step.write_artifact(model, described | image)
    assert model.metadata["image_digest"] == "sha256:12ab"


def test_unknown_values_are_left_out(model_dir: Path, made_by_step: None) -> None:
    manifest = model_dir / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"0123abc"', "null"))
    model = Artifact(str(model_dir))
    Step().write_artifact(model, metadata.model_metadata(ExperimentSpec(), model_dir, {}, uri=""))
    assert model.metadata.keys().isdisjoint({"git_sha", "image_digest", "parent_model_uri"})


def test_a_champion_names_what_its_record_says_made_it(
    tmp_path: Path, dataset: Artifact, made_by_step: None
) -> None:
    version = tmp_path / "store" / "versions" / "v1"
    version.mkdir(parents=True)
    made = {"git_sha": "0123abc", "train_config_sha256": "of the run", "val_mIoU": 0.5}
    (version / "version.json").write_text(json.dumps({"lineage": {"model": made}}))
    fetched = FetchedModel("v1", f"{version}/model/mal_model_latest.pth", "f" * 64, "e" * 64)
    champion = Artifact(str(tmp_path / "champion"))
    described = metadata.champion_metadata(fetched, str(tmp_path / "store"))
    Step(snapshot=dataset).write_artifact(champion, described)
    assert champion.metadata["pipeline_name"] == "auto-label"
    assert champion.metadata["git_sha"] == "0123abc"
    assert champion.metadata["train_config_uri"] == f"{version}/model/experiment.yaml"
    assert champion.metadata["train_config_sha256"] == "e" * 64
    assert "image_digest" not in champion.metadata


def test_a_folder_of_no_finished_training_is_no_model(model_dir: Path) -> None:
    (model_dir / "manifest.json").write_text('{"outputs": {}}')
    with pytest.raises(ArtifactError, match=r"whose manifest\.json names mal_model_latest\.pth"):
        metadata.model_metadata(ExperimentSpec(), model_dir, {}, uri="")


def test_report_names_the_part_that_it_measured() -> None:
    described = metadata.report_metadata(BOXES_ONLY, {})
    assert "training part" in str(described["display_name"])


def test_every_value_is_text_or_a_plain_float(tmp_path: Path, model_dir: Path) -> None:
    page = tmp_path / "page"
    page.write_text("<html>")
    (model_dir / "mal_model.onnx").write_bytes(b"graph")
    experiment = ExperimentSpec()
    described = [
        metadata.dataset_metadata(BOXES_ONLY),
        metadata.model_metadata(experiment, model_dir, {"val_mIoU": 0.7}, uri="s3://b/m"),
        metadata.report_metadata(BOXES_ONLY, {"mIoU": 0.7}),
        metadata.labels_metadata(BOXES_ONLY, page, LabelCounts(4, 3, 0, {"crowd": 1})),
        metadata.onnx_metadata(experiment, model_dir, 1e-6),
    ]
    for values in described:
        assert values["display_name"]
        Step().write_artifact(Artifact("/a"), values)
        assert {type(value) for value in values.values()} <= {str, float}
