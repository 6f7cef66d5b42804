"""What the pipeline steps do around an action."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from snapshots import SPLIT

from mal.errors import ArtifactError, MalError, SpecError
from mal.registry.snapshot import DatasetManifest, SplitSnapshot
from mal.runtime import Interrupted
from mal.spec import ExperimentSpec
from mal.steps import step as steps


def split(name: str) -> SplitSnapshot:
    return dataclasses.replace(
        SPLIT, images_uri=f"/data/{name} images", annotations_uri=f"/data/{name}: #1.json"
    )


TRAIN, VAL, LABEL = split("train"), split("val"), split("label")
WITH_VAL = DatasetManifest("c" * 64, TRAIN, VAL, LABEL)
WITHOUT_VAL = DatasetManifest("d" * 64, TRAIN, None, TRAIN)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "mal_model_latest.pth").write_bytes(b"weights")
    (tmp_path / "experiment.yaml").write_text(
        "device: cuda\nresults_dir: /elsewhere\ndataset: {crop_size: 128}\n"
        "evaluate: {batch_size: 7}\n"
    )
    return tmp_path


def test_paths_reach_the_spec_whatever_characters_they_have(tmp_path: Path) -> None:
    spec = steps.train_spec(WITH_VAL, spec="", overrides=[], results_dir=tmp_path / "a: b #c")
    assert spec.dataset.train_ann_path == TRAIN.annotations_uri
    assert spec.dataset.val_img_dir == VAL.images_uri
    assert spec.train.results_dir == str(tmp_path / "a: b #c")


def test_places_of_the_spec_text_give_way_to_those_of_the_pipeline() -> None:
    text = "results_dir: /results\ntrain: {results_dir: /x, lr: 0.5}\ndataset: {val_ann_path: /v}"
    spec = steps.train_spec(WITHOUT_VAL, spec=text, overrides=["train.wd=0.25"], results_dir="/out")
    assert (spec.results_dir, spec.train.results_dir) == ("/out", "/out")
    assert spec.dataset.val_ann_path == ""
    assert (spec.train.lr, spec.train.wd) == (0.5, 0.25)


def test_overriding_a_place_is_refused_together_with_every_other_problem() -> None:
    with pytest.raises(SpecError) as caught:
        steps.train_spec(
            WITH_VAL,
            spec="",
            overrides=["evaluate.checkpoint=/x.pth", "traain.lr=1", "model.arch=resnet"],
            results_dir="/out",
        )
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "evaluate.checkpoint",
        "traain.lr",
        "model.arch",
    ]


@pytest.mark.parametrize(
    ("data", "measured"), [(WITH_VAL, VAL), (WITHOUT_VAL, TRAIN)], ids=["val", "no val"]
)
def test_evaluate_measures_the_validation_part_or_else_the_training_part(
    data: DatasetManifest, measured: SplitSnapshot, model_dir: Path
) -> None:
    spec = steps.evaluate_spec(data, model_dir=model_dir, spec="", overrides=[], results_dir="/out")
    assert spec.dataset.val_ann_path == measured.annotations_uri
    assert spec.dataset.val_img_dir == measured.images_uri


def test_later_steps_start_from_the_spec_that_the_model_was_trained_with(model_dir: Path) -> None:
    spec = steps.evaluate_spec(
        WITH_VAL,
        model_dir=model_dir,
        spec="evaluate: {batch_size: 2}",
        overrides=[],
        results_dir="/out",
    )
    assert spec.dataset.crop_size == 128
    assert spec.evaluate.batch_size == 2
    assert spec.evaluate.checkpoint == str(model_dir / "mal_model_latest.pth")


@pytest.mark.parametrize(
    ("spec", "overrides", "device"),
    [("", [], "auto"), ("device: cpu", [], "cpu"), ("device: cpu", ["device=auto"], "auto")],
)
def test_a_later_step_has_another_device_than_the_training_had(
    model_dir: Path, spec: str, overrides: list[str], device: str
) -> None:
    later = steps.export_spec(
        model_dir=model_dir, spec=spec, overrides=overrides, results_dir="/out"
    )
    assert later.device == device


def test_inference_labels_the_part_to_label(model_dir: Path) -> None:
    spec = steps.inference_spec(
        WITH_VAL, model_dir=model_dir, spec="", overrides=[], results_dir="/out"
    )
    assert spec.inference.ann_path == LABEL.annotations_uri
    assert spec.inference.img_dir == LABEL.images_uri


@pytest.mark.parametrize(
    "build",
    [
        lambda folder: steps.evaluate_spec(
            WITH_VAL, model_dir=folder, spec="", overrides=[], results_dir="/out"
        ),
        lambda folder: steps.export_spec(
            model_dir=folder, spec="", overrides=[], results_dir="/out"
        ),
    ],
    ids=["evaluate", "export"],
)
def test_a_model_folder_without_a_checkpoint_is_named(
    build: Callable[[Path], ExperimentSpec], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        build(tmp_path)


def test_links_become_files_of_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "epoch.pth").write_bytes(b"weights")
    (tmp_path / "latest.pth").symlink_to("epoch.pth")
    (tmp_path / "dangling.pth").symlink_to("nothing")
    steps.replace_links_by_files(tmp_path)
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
    steps.replace_links_by_files(tmp_path)
    assert not (tmp_path / "latest.pth").is_symlink()
    assert (tmp_path / "latest.pth").read_bytes() == b"weights"


def test_what_the_user_can_mend_ends_the_process_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught, steps.running_step():
        raise MalError("train.lr must be above 0, got 0.")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: train.lr must be above 0, got 0.\n"


def test_a_stopped_step_ends_with_the_exit_code_of_its_signal() -> None:
    with pytest.raises(SystemExit) as caught, steps.running_step():
        raise Interrupted(signal.SIGTERM)
    assert caught.value.code == 143


def test_an_unexpected_failure_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), steps.running_step():
        _ = 1 // 0
