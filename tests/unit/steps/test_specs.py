"""The spec of a pipeline step."""

import dataclasses
from pathlib import Path

import pytest
from snapshots import SPLIT

from mal.errors import ArtifactError, SpecError
from mal.registry.snapshot import DatasetManifest, SplitSnapshot
from mal.steps.specs import step_spec


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
    spec = step_spec("train", WITH_VAL, spec="", overrides=[], results_dir=tmp_path / "a: b #c")
    assert spec.dataset.train_ann_path == TRAIN.annotations_uri
    assert spec.dataset.val_img_dir == VAL.images_uri
    assert spec.train.results_dir == str(tmp_path / "a: b #c")


def test_paths_of_the_pipeline_beat_those_of_the_spec_text() -> None:
    text = "results_dir: /results\ntrain: {results_dir: /x, lr: 0.5}\ndataset: {val_ann_path: /v}"
    spec = step_spec(
        "train", WITHOUT_VAL, spec=text, overrides=["train.wd=0.25"], results_dir="/out"
    )
    assert (spec.results_dir, spec.train.results_dir) == ("/out", "/out")
    assert spec.dataset.val_ann_path == ""
    assert (spec.train.lr, spec.train.wd) == (0.5, 0.25)


def test_overriding_a_path_of_the_pipeline_is_refused_together_with_every_other_problem() -> None:
    with pytest.raises(SpecError) as caught:
        step_spec(
            "train",
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
    spec = step_spec(
        "evaluate", data, model_dir=model_dir, spec="", overrides=[], results_dir="/out"
    )
    assert spec.dataset.val_ann_path == measured.annotations_uri
    assert spec.dataset.val_img_dir == measured.images_uri


def test_later_steps_start_from_the_spec_that_the_model_was_trained_with(model_dir: Path) -> None:
    spec = step_spec(
        "evaluate",
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
    later = step_spec(
        "export", model_dir=model_dir, spec=spec, overrides=overrides, results_dir="/out"
    )
    assert later.device == device


def test_inference_labels_the_part_to_label(model_dir: Path) -> None:
    spec = step_spec(
        "inference", WITH_VAL, model_dir=model_dir, spec="", overrides=[], results_dir="/out"
    )
    assert spec.inference.ann_path == LABEL.annotations_uri
    assert spec.inference.img_dir == LABEL.images_uri


@pytest.mark.parametrize("action", ["evaluate", "inference", "export"])
def test_a_model_folder_without_a_checkpoint_is_named(action: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        step_spec(action, WITH_VAL, model_dir=tmp_path, spec="", overrides=[], results_dir="/out")


def test_keys_that_the_step_sets_beat_spec_and_overrides(model_dir: Path) -> None:
    spec = step_spec(
        "inference",
        model_dir=model_dir,
        spec="inference: {batch_size: 7, img_dir: /spec}",
        overrides=["inference.batch_size=3"],
        results_dir="/out",
        paths={"inference.ann_path": "/shard/a: b.json", "inference.img_dir": "/shard/#images"},
    )
    assert (spec.inference.ann_path, spec.inference.img_dir) == (
        "/shard/a: b.json",
        "/shard/#images",
    )
    assert spec.inference.batch_size == 3
