"""The context of a component's body: exit codes, logs and outputs."""

import hashlib
import json
import logging
import signal
from pathlib import Path

import pytest
import snapshots
from kfp_artifact import Artifact

from mal.errors import ArtifactError, MalError
from mal.lineage.page_record import read_record
from mal.registry.snapshot import DatasetManifest
from mal.runtime import Interrupted
from mal.steps import Step
from mal.steps import step as step_module
from mal.steps.step import replace_links_by_files

MAKER = {"git_commit": "5" * 40, "image_digest": "sha256:55ee"}
BOXES_ONLY = DatasetManifest("c" * 64, snapshots.SPLIT, None, snapshots.SPLIT)
WEIGHTS_SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture(autouse=True)
def made_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "made_by", lambda: MAKER)


@pytest.fixture
def dataset(tmp_path: Path) -> Artifact:
    path = tmp_path / "dataset"
    BOXES_ONLY.write(path)
    return Artifact(str(path), {"pipeline_name": "auto-label"})


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mal_model_latest.pth").write_bytes(b"weights")
    return Artifact(str(folder))


class Metrics:
    """KFP's Metrics, as far as a step uses them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.logged: dict[str, float] = {}

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value


def test_links_become_files_of_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "epoch.pth").write_bytes(b"weights")
    (tmp_path / "latest.pth").symlink_to("epoch.pth")
    (tmp_path / "dangling.pth").symlink_to("nothing")
    replace_links_by_files(tmp_path)
    assert not (tmp_path / "latest.pth").is_symlink()
    assert (tmp_path / "latest.pth").read_bytes() == b"weights"
    assert {path.name for path in tmp_path.iterdir()} == {"epoch.pth", "latest.pth", "dangling.pth"}


def test_links_become_copies_where_the_disk_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "epoch.pth").write_bytes(b"weights")
    (tmp_path / "latest.pth").symlink_to("epoch.pth")
    replace_links_by_files(tmp_path)
    assert not (tmp_path / "latest.pth").is_symlink()
    assert (tmp_path / "latest.pth").read_bytes() == b"weights"


def test_a_user_error_ends_the_process_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, Step():
        raise MalError("train.lr must be above 0, got 0.")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: train.lr must be above 0, got 0.\n"


def test_a_missing_extra_is_a_user_error_and_another_missing_module_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, Step():
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")
    assert caught.value.code == 2
    assert "pip install 'mal[s3]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="no_such"), Step():
        raise ModuleNotFoundError("No module named 'no_such'", name="no_such")


def test_a_stopped_step_ends_with_the_exit_code_of_its_signal() -> None:
    with pytest.raises(SystemExit) as caught, Step():
        raise Interrupted(signal.SIGTERM)
    assert caught.value.code == 143


def test_an_unexpected_failure_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), Step():
        _ = 1 // 0


def test_a_line_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mal"), Step() as step:
        step.log("100 % of 8 boxes")
    assert "100 % of 8 boxes" in caplog.messages


def test_a_broken_manifest_is_a_user_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").write_text("{}")
    with pytest.raises(SystemExit), Step(dataset=Artifact(str(tmp_path / "dataset"))) as step:
        _ = step.data
    assert "is not an output of snapshot_dataset" in capsys.readouterr().err


def test_an_output_records_commit_image_pipeline_and_parents(
    dataset: Artifact, model: Artifact, tmp_path: Path
) -> None:
    labels = Artifact(str(tmp_path / "labels"))
    with Step(dataset=dataset, model=model) as step:
        step.write_artifact(labels, {"display_name": "labels", "val_annotations_uri": ""}, text="x")
    assert Path(labels.path).read_text() == "x"
    assert labels.metadata == {
        "display_name": "labels",
        "git_sha": MAKER["git_commit"],
        "image_digest": MAKER["image_digest"],
        "pipeline_name": "auto-label",
        "dataset_uri": dataset.uri,
        "dataset_sha256": "c" * 64,
        "model_uri": model.uri,
        "model_sha256": WEIGHTS_SHA256,
        "sha256": hashlib.sha256(b"x").hexdigest(),
    }


def test_a_file_is_copied_and_the_links_of_a_folder_become_files(
    dataset: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "result.html").write_text("<html>")
    report, folder = Artifact(str(tmp_path / "report")), tmp_path / "trained"
    folder.mkdir()
    (folder / "epoch.pth").write_bytes(b"weights")
    (folder / "latest.pth").symlink_to("epoch.pth")
    with Step(dataset=dataset) as step:
        step.write_artifact(report, {}, file=tmp_path / "result.html")
        step.write_artifact(Artifact(str(folder)), {})
    assert Path(report.path).read_text() == "<html>"
    assert not (folder / "latest.pth").is_symlink()


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="other types"), Step() as step:
        step.write_artifact(Artifact("/a"), {"num_boxes": 3})


def test_outputs_name_the_spec_of_their_step_and_the_page_keeps_it(
    dataset: Artifact, tmp_path: Path
) -> None:
    report, summary = Artifact(str(tmp_path / "report")), Artifact(str(tmp_path / "summary"))
    with Step(dataset=dataset) as step:
        step.experiment("train", spec="train: {lr: 0.5}", overrides=[], results_dir=tmp_path)
        step.write_artifact(report, {}, text="page")
        step.write_summary(summary, "text", report=report)
    text = read_record(Path(summary.path).read_text())["report"]["train_config"]
    assert json.loads(text)["train"]["lr"] == 0.5
    assert report.metadata["train_config_uri"] == summary.uri
    assert report.metadata["train_config_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_folder_with_the_spec_of_its_step_names_that_file(
    dataset: Artifact, tmp_path: Path
) -> None:
    onnx = Artifact(str(tmp_path / "onnx"))
    with Step(dataset=dataset) as step:
        step.experiment("train", spec="", overrides=[], results_dir=onnx.path)
        Path(onnx.path).mkdir()
        (tmp_path / "onnx" / "experiment.yaml").write_text("train: {lr: 1}\n")
        step.write_artifact(onnx, {})
    assert onnx.metadata["train_config_uri"] == f"{onnx.uri}/experiment.yaml"
    spec = (tmp_path / "onnx" / "experiment.yaml").read_bytes()
    assert onnx.metadata["train_config_sha256"] == hashlib.sha256(spec).hexdigest()


def test_no_metadata_has_a_value_as_long_as_a_spec(dataset: Artifact, tmp_path: Path) -> None:
    """Each byte is in Argo's workflow object six times for each step that takes the artifact."""
    report, summary = Artifact(str(tmp_path / "report")), Artifact(str(tmp_path / "summary"))
    with Step(dataset=dataset) as step:
        step.experiment("train", spec="", overrides=[], results_dir=tmp_path)
        step.write_artifact(report, {}, text="page")
        step.write_summary(summary, "text", report=report)
    for artifact in (report, summary):
        assert max(len(str(value)) for value in artifact.metadata.values()) < 300


def test_metrics_are_logged_without_values_that_were_not_measured(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    metrics = Metrics(str(tmp_path / "metrics"))
    measured = {"mIoU": 0.5, "AP": float("nan"), "mIoU_small": None, "num_instances": 4}
    with Step() as step:
        step.log_metrics(metrics, measured, file=tmp_path / "metrics.json")
    assert metrics.logged == {"mIoU": 0.5, "num_instances": 4.0}
    assert Path(metrics.path).read_text() == "{}"


def test_a_summary_shares_parents_and_spec_but_names_its_own_step(tmp_path: Path) -> None:
    described = {"git_sha": "other", "mIoU": 0.5, "model_sha256": "m", "train_config_uri": "u"}
    summary = Artifact(str(tmp_path / "summary"))
    with Step() as step:
        step.write_summary(summary, "text", report=Artifact("/report", described))
    assert summary.metadata == {
        "display_name": "summary",
        "pipeline_name": "mal",
        "git_sha": MAKER["git_commit"],
        "image_digest": MAKER["image_digest"],
        "model_sha256": "m",
        "train_config_uri": "u",
    }
    page = Path(summary.path).read_text()
    assert page.startswith("text\n")
    assert read_record(page) == {"report": {"uri": "minio://bucket/report", **described}}


def test_a_model_folder_without_a_checkpoint_is_a_user_error(
    dataset: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        _ = Step(dataset=dataset, model=Artifact(str(tmp_path / "nothing"))).parents
