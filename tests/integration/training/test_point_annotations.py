"""Boxes, boxes with points and points alone, mixed in one file, through every action."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_sets import (
    HYBRID,
    KINDS,
    TINY_VIT,
    TinySet,
    training_spec,
    with_points,
    write_tiny_set,
)

import mal
from mal.cli import main as command_line
from mal.errors import AnnotationError, MalError
from mal.labeling.predictor import NetworkEnsemble
from mal.spec import load_spec
from mal.stages import TrainResult, run_evaluate, run_export, run_inference, run_train


@dataclasses.dataclass(frozen=True)
class PointRun:
    data: TinySet
    result: TrainResult

    def overrides(self, action: str, folder: Path) -> list[str]:
        return [
            f"{action}.checkpoint={self.result.checkpoint}",
            f"{action}.results_dir={folder}",
            f"dataset.val_ann_path={self.data.annotations}",
            f"dataset.val_img_dir={self.data.images}",
            f"inference.ann_path={self.data.annotations}",
            f"inference.img_dir={self.data.images}",
        ]

    def spec(self, action: str, folder: Path, *more: str) -> Any:
        base = str(self.result.results_dir / "experiment.yaml")
        return load_spec(action, base, [*self.overrides(action, folder), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PointRun:
    folder = tmp_path_factory.mktemp("points")
    data = with_points(write_tiny_set(folder / "set", num_images=5, boxes_per_image=3))
    spec = training_spec(
        data, folder / "train", "train.num_epochs=4", "train.mask_thres=[0.45]", val=data
    )
    return PointRun(data, run_train(spec))


def image_of(data: TinySet, number: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    name = data.document()["images"][number]["file_name"]
    return np.asarray(Image.open(data.images / name).convert("RGB"))


def test_training_learns_from_points_and_estimates_missing_boxes(run: PointRun) -> None:
    first, *_ = (run.result.results_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["loss_point"] > 0
    estimates = json.loads((run.result.results_dir / "estimated_boxes.json").read_text())
    assert len(estimates["estimates"]) == 5
    assert run.result.metrics["val_mIoU"] > 0


def test_evaluation_measures_every_kind(run: PointRun, tmp_path: Path) -> None:
    metrics = run_evaluate(run.spec("evaluate", tmp_path)).metrics
    assert metrics["num_instances"] == 15
    assert metrics["mIoU"] > 0


def test_labels_say_what_they_were_prompted_with(run: PointRun, tmp_path: Path) -> None:
    labels = json.loads(run_inference(run.spec("inference", tmp_path)).labels.read_text())
    given = run.data.document()
    for number, (annotation, before) in enumerate(
        zip(labels["annotations"], given["annotations"], strict=True)
    ):
        new = annotation.keys() - before.keys()
        kind = KINDS[number % 3]
        assert (
            new
            == {
                "box": {"score"},
                "box+points": {"score", "prompt"},
                "point": {"score", "prompt", "estimated_bbox"},
            }[kind]
        )
        assert annotation.get("prompt", "box") == kind
        if kind == "point":
            x, y, _ = before["points"][0]
            left, top, width, height = annotation["estimated_bbox"]
            assert left <= x <= left + width
            assert top <= y <= top + height


def test_points_are_on_the_mask_or_off_it(run: PointRun, tmp_path: Path) -> None:
    labels = json.loads(run_inference(run.spec("inference", tmp_path)).labels.read_text())
    for annotation in labels["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        for x, y, label in annotation.get("points", []):
            assert mask[int(y), int(x)] == label


def test_a_click_on_the_same_object_runs_no_backbone(run: PointRun) -> None:
    predictor = mal.Predictor(run.result.checkpoint)
    image, annotation = image_of(run.data), run.data.document()["annotations"][0]
    x, y, w, h = annotation["bbox"]
    box = [[x, y, x + w, y + h]]
    calls = []
    ensemble = predictor._prompted.model
    assert isinstance(ensemble, NetworkEnsemble)
    for network in ensemble.networks:
        network.backbone.register_forward_hook(lambda *_: calls.append(1))
    plain = predictor.predict(image, box)
    assert calls
    calls.clear()
    inside = [int(v) for v in np.argwhere(plain[0])[0][::-1]]
    clicked = predictor.predict(image, box, [[[inside[0] + 0.5, inside[1] + 0.5, 0]]])
    assert not calls
    assert plain[0, inside[1], inside[0]]
    assert not clicked[0, inside[1], inside[0]]
    point = [x + w / 2, y + h / 2, 1]
    predictor.predict(image, points=[[point]])
    calls.clear()
    predictor.predict(image, points=[[point, [x + 1, y + 1, 0]]])
    assert not calls


def test_one_list_of_points_is_one_object(run: PointRun) -> None:
    predictor = mal.Predictor(run.result.checkpoint)
    image = image_of(run.data)
    masks = predictor.predict(image, points=np.array([[20, 20, 1], [2, 2, 0]]))
    assert masks.shape == (1, 48, 48)
    np.testing.assert_array_equal(
        masks, predictor.predict(image, points=[[[20, 20, 1], [2, 2, 0]]])
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "boxes or points, got neither"),
        ({"points": [[[20, 20, 0]]]}, "must have a point on it"),
        ({"points": [[[90, 20, 1]]]}, "must lie in the image"),
        ({"points": [[[20, 20, 2]]]}, "must be 0 or 1"),
        ({"boxes": [[1, 1, 9, 9]], "points": [[], []]}, "a list for each of the 1 boxes"),
    ],
    ids=["nothing", "only off", "outside", "label", "counts"],
)
def test_prompts_that_make_no_sense_are_refused(
    run: PointRun, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(MalError, match=told):
        mal.Predictor(run.result.checkpoint).predict(image_of(run.data), **arguments)


def test_an_exported_model_takes_points_and_agrees(run: PointRun, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = run_export(run.spec("export", tmp_path))
    description = json.loads(exported.sidecar.read_text())
    assert description["prompt_max_abs_diff"] < 1e-3
    encoder, decoder = (
        onnxruntime.InferenceSession(str(tmp_path / f"mal_{name}.onnx"))
        for name in ("encoder", "decoder")
    )
    assert [i.name for i in encoder.get_inputs()] == ["image"]
    assert [i.name for i in decoder.get_inputs()] == [
        "features", "box_area", "points", "point_labels",
    ]  # fmt: skip
    image = image_of(run.data)
    prompts: dict[str, Any] = {"boxes": [[5, 5, 30, 30]], "points": [[[16, 16, 1], [6, 6, 0]]]}
    for given in (prompts, {"points": prompts["points"]}):
        expected = mal.Predictor(run.result.checkpoint).predict(image, **given)
        found = mal.Predictor(exported.onnx).predict(image, **given)
        assert (found != expected).mean() < 0.002
    (tmp_path / "mal_decoder.onnx").unlink()
    with pytest.raises(MalError, match=r"points need mal_decoder\.onnx"):
        mal.Predictor(exported.onnx).predict(image, **prompts)


@pytest.mark.parametrize("network", [HYBRID, TINY_VIT], ids=["hybrid", "ViT"])
def test_points_that_no_trained_object_has_change_no_bit_of_the_weights(
    tmp_path: Path, network: tuple[str, ...]
) -> None:
    """A crowd with points makes the whole path of points run, for objects without any."""
    boxes = write_tiny_set(tmp_path / "set", num_images=2)
    document = boxes.document()
    crowd = document["annotations"][0] | {"id": 99, "iscrowd": 1}
    document["annotations"].append(crowd)
    plain = boxes.rewritten(document, "plain.json")
    crowd["points"] = [[20, 20, 1]]
    pointed = boxes.rewritten(document, "pointed.json")
    weights = []
    for name, data in (("plain", plain), ("pointed", pointed)):
        spec = training_spec(data, tmp_path / name, "train.num_epochs=1", network=network)
        state = torch.load(run_train(spec).checkpoint, weights_only=True)["state_dict"]
        weights.append(state)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_set_of_points_only_says_what_it_needs(tmp_path: Path) -> None:
    boxes = write_tiny_set(tmp_path / "set", num_images=2)
    data = with_points(boxes, kinds=["point"])
    with pytest.raises(AnnotationError, match="no annotation has a box, only points"):
        run_train(training_spec(data, tmp_path / "train"))


def test_contradicting_points_are_exit_2(
    run: PointRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run.data.document()
    document["annotations"][0]["points"] = [[20, 20, 1], [20.5, 20.5, 0]]
    data = run.data.rewritten(document, "contradicting.json")
    overrides = [
        *run.overrides("inference", tmp_path), f"inference.ann_path={data.annotations}",
    ]  # fmt: skip
    arguments = ["inference", "-e", str(run.result.results_dir / "experiment.yaml"), *overrides]
    assert command_line(arguments) == 2
    assert "points of a pixel must agree" in capsys.readouterr().err
