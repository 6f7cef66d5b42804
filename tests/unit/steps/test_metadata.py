"""The metadata that tells where an artifact came from."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import snapshots
from kfp_artifact import Artifact

from mal.errors import ArtifactError
from mal.registry.model_fetch import FetchedModel
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec
from mal.steps import metadata as lineage
from mal.steps import step as steps

SPLIT = dataclasses.replace(snapshots.SPLIT, images_uri="s3://bucket/images", has_masks=True)
STEP = {"git_commit": "5" * 40, "image_digest": "sha256:55ee"}
BOXES_ONLY = DatasetManifest("c" * 64, SPLIT, None, SPLIT)


@pytest.fixture
def made_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "made_by", lambda: STEP)


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    path = tmp_path / "dataset"
    BOXES_ONLY.write(path)
    return Artifact(str(path), {"pipeline_name": "auto-label"})


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mal_model_latest.pth").write_bytes(b"weights")
    checkpoint = {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    manifest = {"git_commit": "0123abc", "outputs": {"mal_model_latest.pth": checkpoint}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_figures_leave_out_what_was_not_measured() -> None:
    metrics = {
        "mIoU": 0.5,
        "mIoU_small": None,
        "AP": float("nan"),
        "num_instances": 4,
        "note": "text",
        "per_category": {"star": {"iou": 0.25, "count": 4}, "ring": {"iou": None, "count": 0}},
    }
    assert lineage.figures(metrics) == {"mIoU": 0.5, "num_instances": 4.0, "IoU star": 0.25}


def test_parents_are_named_by_uri_and_by_the_digest_of_their_files(
    dataset: Artifact, model_dir: Path
) -> None:
    model = Artifact(str(model_dir))
    assert lineage.parents(dataset, model) == {
        "pipeline_name": "auto-label",
        "dataset_uri": dataset.uri,
        "dataset_sha256": "c" * 64,
        "model_uri": model.uri,
        "model_sha256": hashlib.sha256(b"weights").hexdigest(),
    }


def test_model_metadata_names_code_spec_and_figures(model_dir: Path) -> None:
    experiment = ExperimentSpec()
    experiment.train.pretrained_model_path = "s3://bucket/mae.pth"
    facts = lineage.model_metadata(experiment, model_dir, {"val_mIoU": 0.7})
    assert facts["git_sha"] == "0123abc"
    assert facts["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert facts["parent_model_uri"] == "s3://bucket/mae.pth"
    assert facts["val_mIoU"] == 0.7
    assert json.loads(str(facts["train_config"]))["train"]["lr"] == experiment.train.lr


def test_an_artifact_names_the_commit_and_the_image_of_its_step(
    dataset: Artifact, made_by_step: None
) -> None:
    steps.describe(dataset, {"display_name": "data set", "val_annotations_uri": ""})
    assert dataset.metadata == {
        "pipeline_name": "auto-label",
        "display_name": "data set",
        "git_sha": STEP["git_commit"],
        "image_digest": STEP["image_digest"],
    }


def test_a_model_names_what_trained_it_and_not_the_step_that_waited(
    model_dir: Path, made_by_step: None
) -> None:
    model = Artifact(str(model_dir))
    facts = lineage.model_metadata(ExperimentSpec(), model_dir, {})
    steps.describe(model, facts)
    assert model.metadata["git_sha"] == "0123abc"
    assert "image_digest" not in model.metadata
    steps.describe(model, facts, lineage.image_facts("mal/train:1"))
    assert "image_digest" not in model.metadata
    steps.describe(model, facts, lineage.image_facts("registry:5000/mal/train@sha256:12ab"))
    assert model.metadata["image_digest"] == "sha256:12ab"


def test_unknown_facts_are_left_out(model_dir: Path, made_by_step: None) -> None:
    manifest = model_dir / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"0123abc"', "null"))
    model = Artifact(str(model_dir))
    steps.describe(model, lineage.model_metadata(ExperimentSpec(), model_dir, {}))
    assert model.metadata.keys().isdisjoint({"git_sha", "image_digest", "parent_model_uri"})


def test_a_summary_shares_parents_and_spec_but_was_made_by_its_own_step(
    tmp_path: Path, made_by_step: None
) -> None:
    facts = {"git_sha": "other", "mIoU": 0.5, "model_sha256": "m", "train_config": "{}"}
    summary = Artifact(str(tmp_path / "summary"))
    steps.write_summary(summary, "text", report=Artifact("/report", facts))
    assert summary.metadata == {
        "display_name": "summary",
        "pipeline_name": "mal",
        "git_sha": STEP["git_commit"],
        "image_digest": STEP["image_digest"],
        "model_sha256": "m",
        "train_config": "{}",
    }


def test_a_champion_names_what_its_record_says_made_it(
    tmp_path: Path, dataset: Artifact, made_by_step: None
) -> None:
    version = tmp_path / "store" / "versions" / "v1"
    version.mkdir(parents=True)
    made = {"git_sha": "0123abc", "train_config": "{}", "val_mIoU": 0.5}
    (version / "version.json").write_text(json.dumps({"lineage": {"model": made}}))
    fetched = FetchedModel("v1", f"{version}/model/mal_model_latest.pth", "f" * 64)
    champion = Artifact(str(tmp_path / "champion"))
    store = str(tmp_path / "store")
    steps.describe(champion, lineage.champion_metadata(fetched, dataset, store=store))
    assert champion.metadata["git_sha"] == "0123abc"
    assert champion.metadata["train_config"] == "{}"
    assert "image_digest" not in champion.metadata


def test_a_folder_of_no_finished_training_is_no_model(model_dir: Path) -> None:
    (model_dir / "manifest.json").write_text('{"outputs": {}}')
    with pytest.raises(ArtifactError, match=r"whose manifest\.json names mal_model_latest\.pth"):
        lineage.model_metadata(ExperimentSpec(), model_dir, {})


def test_report_says_which_part_it_measured(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("<html>")
    facts = lineage.report_metadata(BOXES_ONLY, tmp_path / "report", {})
    assert "training part" in str(facts["display_name"])


def test_every_value_is_text_or_a_plain_float(tmp_path: Path, model_dir: Path) -> None:
    page = tmp_path / "page"
    page.write_text("<html>")
    (model_dir / "mal_model.onnx").write_bytes(b"graph")
    experiment = ExperimentSpec()
    described = [
        lineage.dataset_metadata(BOXES_ONLY, pipeline_name="auto-label"),
        lineage.model_metadata(experiment, model_dir, {"val_mIoU": 0.7}),
        lineage.report_metadata(BOXES_ONLY, page, {"mIoU": 0.7}),
        lineage.labels_metadata(BOXES_ONLY, page, 4),
        lineage.onnx_metadata(experiment, model_dir, 1e-6),
    ]
    for facts in described:
        assert facts["display_name"]
        steps.describe(Artifact("/a"), facts, lineage.spec_facts("export", experiment))
        assert {type(value) for value in facts.values()} <= {str, float}
