"""The metadata that tells where an artifact came from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mal.errors import ArtifactError
from mal.lifecycle import lineage
from mal.lifecycle.snapshot import DatasetManifest, SplitSnapshot
from mal.spec import ExperimentSpec

SPLIT = SplitSnapshot(
    images_uri="s3://bucket/images",
    annotations_uri="s3://bucket/train.json",
    annotations_sha256="a" * 64,
    images_sha256="b" * 64,
    num_images=3,
    num_missing_images=0,
    num_boxes=5,
    num_crowds=0,
    num_categories=2,
    has_masks=True,
    image_bytes=10,
)
BOXES_ONLY = DatasetManifest("c" * 64, SPLIT, None, SPLIT)


@dataclass
class Artifact:
    """A KFP artifact on a local disk."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"minio://bucket{self.path}"


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


def test_unknown_facts_are_left_out(model_dir: Path) -> None:
    manifest = model_dir / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"0123abc"', "null"))
    facts = lineage.model_metadata(ExperimentSpec(), model_dir, {})
    assert facts.keys().isdisjoint({"git_sha", "image_digest", "parent_model_uri"})


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
        assert {type(value) for value in facts.values()} <= {str, float}
