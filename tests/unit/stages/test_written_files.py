"""No action writes over what it reads, however the two are spelt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mal.cli import main
from mal.errors import SpecError
from mal.spec import load_spec
from mal.stages.written_files import require_inputs_kept


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with boxes, images and a model, which is the working folder."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"picture")
    for name in ("boxes.json", "report.html", "metrics.json", "model.pth", "model.onnx"):
        (tmp_path / name).write_bytes(b"precious")
    (tmp_path / "link.json").symlink_to("boxes.json")
    (tmp_path / "link").symlink_to(".")
    os.link(tmp_path / "boxes.json", tmp_path / "hard.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LABELS, MODEL = "inference.label_dump_path", "export.onnx_file"
OVERWRITING = {
    "labels on the boxes": ("inference", [f"{LABELS}=boxes.json", "inference.results_dir=."]),
    "an absolute path": ("inference", [f"{LABELS}=ROOT/boxes.json", "results_dir=out"]),
    "upwards": ("inference", [f"{LABELS}=../../boxes.json", "results_dir=out"]),
    "a link to the boxes": ("inference", [f"{LABELS}=ROOT/link.json", "results_dir=out"]),
    "a hard link": ("inference", [f"{LABELS}=ROOT/hard.json", "results_dir=out"]),
    "boxes by a linked folder": (
        "inference", [f"{LABELS}=ROOT/boxes.json", "inference.ann_path=link/boxes.json",
                      "results_dir=out"],
    ),
    "labels on an image": ("inference", [f"{LABELS}=ROOT/images/1.png", "results_dir=out"]),
    "the report on the boxes": (
        "inference", ["inference.ann_path=report.html", "inference.results_dir=."],
    ),
    "labels in a bucket": (
        "inference", ["inference.ann_path=s3://b/o/x.json", f"{LABELS}=x.json",
                      "inference.results_dir=s3://b/o/"],
    ),
    "labels in a bucket, twice spelt": (
        "inference", ["inference.ann_path=s3://b//o/x.json", f"{LABELS}=s3://b/o/x.json",
                      "inference.results_dir=minio://b/o"],
    ),
    "a model on its checkpoint": ("export", [f"{MODEL}=ROOT/model.pth", "results_dir=out"]),
    "a model in the folder of its checkpoint": (
        "export", [f"{MODEL}=model.pth", "export.results_dir=link"],
    ),
    "metrics on the boxes": (
        "evaluate", ["dataset.val_ann_path=metrics.json", "evaluate.results_dir=."],
    ),
    "results in the images": ("evaluate", ["evaluate.results_dir=images"]),
    "results in the linked images": ("train", ["train.results_dir=link/images/"]),
    "checkpoints on the weights": (
        "train", ["train.results_dir=.", "train.pretrained_model_path=mal_model_latest.pth"],
    ),
}  # fmt: skip


def overrides_of(action: str, overrides: Sequence[str], root: Path) -> list[str]:
    given = {
        "train": ["dataset.train_ann_path=boxes.json", "dataset.train_img_dir=images"],
        "evaluate": ["dataset.val_ann_path=boxes.json", "dataset.val_img_dir=images"],
        "inference": ["inference.ann_path=boxes.json", "inference.img_dir=images"],
        "export": [],
    }[action]
    model = [] if action == "train" else [f"{action}.checkpoint=model.pth"]
    return [*given, *model, *(override.replace("ROOT", str(root)) for override in overrides)]


@pytest.mark.parametrize(("action", "overrides"), OVERWRITING.values(), ids=OVERWRITING.keys())
def test_an_action_that_would_write_over_its_input_ends_before_any_work(
    root: Path, action: str, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main([action, *overrides_of(action, overrides, root)]) == 2
    told = capsys.readouterr().err
    assert "must not be written over" in told
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


HARMLESS = {
    "a folder of their own": ("inference", ["results_dir=out"]),
    "another name beside the boxes": (
        "inference", [f"{LABELS}=labels.json", "inference.results_dir=."],
    ),
    "results below the images' root": (
        "train", ["dataset.train_img_dir=.", "results_dir=out"],
    ),
    "the same name in another bucket": (
        "inference", ["inference.ann_path=s3://a/o/x.json", f"{LABELS}=x.json",
                      "inference.results_dir=s3://b/o"],
    ),
    "a model beside its checkpoint": ("export", [f"{MODEL}=n.onnx", "export.results_dir=."]),
}  # fmt: skip


@pytest.mark.parametrize(("action", "overrides"), HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_written_elsewhere_is_no_mistake(
    root: Path, action: str, overrides: list[str]
) -> None:
    require_inputs_kept(action, load_spec(action, {}, overrides_of(action, overrides, root)))


def test_a_search_keeps_its_weights_too(root: Path) -> None:
    weights = "train.pretrained_model_path=out/automl/mal_model_best.pth"
    given = overrides_of("train", ["results_dir=out", weights], root)
    with pytest.raises(SpecError, match=r"results_dir must not be written over train\.pretrained"):
        require_inputs_kept("automl", load_spec("train", {}, given))
