"""`mal.Predictor` gives what `mal inference` gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_sets import Trained

import mal
from mal.data.crop_dataset import ImageReader
from mal.errors import ArtifactError, MalError, StorageError
from mal.labeling.box_estimation import EstimatedBox
from mal.labeling.image_predictor import checked_prompts
from mal.spec import load_spec
from mal.stages import run_inference

IMAGE = np.zeros((20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def labels(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    spec = str(trained.result.results_dir / "experiment.yaml")
    overrides = [
        f"inference.checkpoint={trained.result.checkpoint}",
        f"inference.ann_path={trained.data.annotations}",
        f"inference.img_dir={trained.data.images}",
        f"inference.results_dir={tmp_path_factory.mktemp('inference')}",
    ]
    content: dict[str, Any] = json.loads(
        run_inference(load_spec("inference", spec, overrides)).labels.read_text()
    )
    return content


def predict_set(predictor: mal.Predictor, trained: Trained) -> list[NDArray[np.bool_]]:
    document = trained.data.document()
    masks: list[NDArray[np.bool_]] = []
    for entry in document["images"]:
        image = np.asarray(Image.open(trained.data.images / entry["file_name"]).convert("RGB"))
        boxes = [a["bbox"] for a in document["annotations"] if a["image_id"] == entry["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        found = predictor.predict(image, corners)
        assert found.shape == (len(boxes), entry["height"], entry["width"])
        assert found.dtype == np.bool_
        masks += list(found)
    return masks


def test_masks_equal_those_of_inference(trained: Trained, labels: dict[str, Any]) -> None:
    masks = predict_set(mal.Predictor(trained.result.checkpoint), trained)
    assert sum(mask.sum() for mask in masks) > 0
    for mask, annotation in zip(masks, labels["annotations"], strict=True):
        np.testing.assert_array_equal(mask, coco_mask.decode(annotation["segmentation"]))


def test_an_exported_model_gives_the_same_masks(trained: Trained, exported: Path) -> None:
    mine = predict_set(mal.Predictor(str(exported)), trained)
    theirs = predict_set(mal.Predictor(trained.result.results_dir), trained)
    differing = sum(int((a != b).sum()) for a, b in zip(mine, theirs, strict=True))
    assert differing <= 2


def test_no_boxes_give_no_masks(trained: Trained) -> None:
    predictor = mal.Predictor(trained.result.checkpoint)
    empty: tuple[Any, ...] = ([], np.zeros((0, 4)))
    for boxes in empty:
        assert predictor.predict(IMAGE, boxes).shape == (0, 20, 30)


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (IMAGE[..., 0], [[0, 0, 5, 5]], r"uint8 array of shape \(H, W, 3\), got uint8 of shape"),
        (IMAGE.astype(np.float32), [[0, 0, 5, 5]], "got float32 of shape"),
        (IMAGE[:0], [[0, 0, 5, 5]], "of shape"),
        ("image.png", [[0, 0, 5, 5]], "got str"),
        (IMAGE, [0, 0, 5, 5], r"shape \(N, 4\), got \(4,\)"),
        (IMAGE, [[0, 0, 5]], r"got \(1, 3\)"),
        (IMAGE, [["a", "b", "c", "d"]], "must be numbers"),
        (IMAGE, [[0, 0, 5, 5], [5, 5, 5, 9]], r"x1 > x0 .* in row 1"),
        (IMAGE, [[0, 0, float("nan"), 5]], "in row 0"),
    ],
)
def test_what_cannot_be_predicted_is_named(
    trained: Trained, image: Any, boxes: Any, message: str
) -> None:
    with pytest.raises(MalError, match=message):
        mal.Predictor(trained.result.checkpoint).predict(image, boxes)


@pytest.mark.parametrize(
    "box", [[-9, -9, 6, 6], [20, 10, 90, 90], [-5, -5, 50, 50], [40, 40, 50, 50]]
)
def test_boxes_beyond_the_image_are_cut_at_its_border(trained: Trained, box: list[int]) -> None:
    (mask,) = mal.Predictor(trained.result.checkpoint).predict(IMAGE, [box])
    rows, columns = np.nonzero(mask)
    assert ((rows >= box[1]) & (rows < box[3]) & (columns >= box[0]) & (columns < box[2])).all()


@pytest.mark.parametrize(
    "points",
    [
        [[8, 9, 1], [2, 2, 0]],
        ((8, 9, 1), (2, 2, 0)),
        [np.array([8, 9, 1]), np.array([2, 2, 0])],
        np.array([[8, 9, 1], [2, 2, 0]], dtype=np.float32),
        [[np.int64(8), np.float32(9), np.bool_(True)], [2, 2, np.uint8(0)]],
        [[[8, 9, 1], np.array([2, 2, 0])]],
        [[np.array([8, 9, 1]), (2, 2, 0)]],
    ],
    ids=["lists", "tuples", "arrays", "one array", "NumPy numbers", "mixed", "of each"],
)
def test_points_may_be_given_as_any_lists_of_numbers(points: Any) -> None:
    _, prompts = checked_prompts(None, points, IMAGE)
    assert prompts is not None
    assert prompts.xy_P2.tolist() == [[8, 9], [2, 2]]
    assert prompts.label_P.tolist() == [1, 0]
    assert prompts.start_N1.tolist() == [0, 2]


@pytest.mark.parametrize("nothing", [[], None, (), np.zeros((0, 3))])
def test_an_object_may_have_no_points(nothing: Any) -> None:
    _, prompts = checked_prompts([[0, 0, 9, 9], [5, 5, 15, 15]], [nothing, [[8, 9, 1]]], IMAGE)
    assert prompts is not None
    assert prompts.count_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([20, 10, 1], r"points must be \[x, y, label\] each, got 20 in object 0"),
        (3, "got 3 in object 0"),
        (np.float32(3), "got 3.0 in object 0"),
        ("here", "got here in object 0"),
        ([[8, 9]], r"got \[8, 9\] in object 0"),
        ([[[8, 9, 1]], 3], "got 3 in object 1"),
        ([[8, 9, 1], 3], r"got \[\[8, 9, 1\], 3\] in object 0"),
        ([[8, 9, np.float32("nan")]], "nan"),
        ({"points": [[8, 9, 1]]}, "points must be"),
    ],
)
def test_what_are_no_points_is_named(points: Any, message: str) -> None:
    with pytest.raises(MalError, match=message):
        checked_prompts(None, points, IMAGE)


@pytest.mark.parametrize("place", [[2.9, 5], [7, 2.9], [9.1, 5], [7, 9.1]])
def test_a_point_on_an_object_outside_its_box_is_refused(place: list[float]) -> None:
    boxes = [[0, 0, 20, 20], [3, 3, 9, 9]]
    with pytest.raises(MalError, match=r"must lie in its box, got .* for object 1 of box \[3\.0"):
        checked_prompts(boxes, [[], [[5, 5, 1], [*place, 1]]], IMAGE)
    _, prompts = checked_prompts(boxes, [[], [[3, 9, 1], [*place, 0]]], IMAGE)
    assert prompts is not None, "a point off the object may lie anywhere"


@pytest.mark.parametrize(
    "boxes",
    [[[0, 0, 9, 9], None, None], (np.array([0, 0, 9, 9]), None, None),
     np.array([[0, 0, 9, 9], None, None], dtype=object)],
    ids=["lists", "tuple of arrays", "array of objects"],
)  # fmt: skip
def test_objects_with_and_without_a_box_mix(boxes: Any) -> None:
    box_xywh_N4, prompts = checked_prompts(boxes, [None, [[12, 9, 1]], [[3, 3, 1], ON]], IMAGE)
    assert prompts is not None
    assert prompts.is_without_box_N.tolist() == [False, True, True]
    assert prompts.count_N.tolist() == [0, 1, 2]
    assert box_xywh_N4[0].tolist() == [0, 0, 9, 9]
    assert np.isnan(box_xywh_N4[1:]).all()


@pytest.mark.parametrize(
    ("boxes", "points", "message"),
    [
        ([[0, 0, 9, 9], None], [[], []], "must have a point on it, got none for object 1"),
        ([[0, 0, 9, 9], None], [[], [[5, 5, 0]]], "must have a point on it, .* for object 1"),
        ([[0, 0, 9, 9], None], None, "must have a point on it, got none for object 1"),
        ([None, [5, 5, 5, 9]], [[[5, 5, 1]], []], "x1 > x0 .* in row 1"),
        ([None, [5, 5, 9, 9]], [[[5, 5, 1]], [[1, 1, 1]]], "in its box, .* for object 1"),
        ([None, [5, 5, 9]], [[[5, 5, 1]], []], "boxes must be numbers"),
        ([None, 5, 5, 9], [[[5, 5, 1]]], "boxes must be numbers"),
        ([None, None], [[[5, 5, 1]]], "a list for each of the 2 boxes, got 1"),
    ],
)
def test_a_box_is_not_left_out_without_a_point_in_its_place(
    boxes: Any, points: Any, message: str
) -> None:
    with pytest.raises(MalError, match=message):
        checked_prompts(boxes, points, IMAGE)


def test_masks_do_not_depend_on_what_else_is_asked_for(trained: Trained) -> None:
    predictor = mal.Predictor(trained.result.checkpoint)
    image = np.asarray(Image.open(sorted(trained.data.images.iterdir())[0]).convert("RGB"))
    box, points = [4, 4, 30, 30], [[20, 20, 1]]
    mixed = predictor.predict(image, [None, box], [points, []])
    np.testing.assert_array_equal(mixed[:1], predictor.predict(image, points=points))
    np.testing.assert_array_equal(mixed[1:], predictor.predict(image, [box]))
    assert mixed[1].any()


@pytest.fixture
def clicked(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> tuple[mal.Predictor, list[list[list[float]]]]:
    """A predictor, and a list of the points that it has estimated a box of: always 10 x 10 px."""
    predictor = mal.Predictor(trained.result.checkpoint)
    estimated_of = []

    def estimate(reader: ImageReader, row: int) -> EstimatedBox:
        assert reader.boxes.points is not None
        xy_K2, label_K = reader.boxes.points.of(row)
        estimated_of.append(np.column_stack([xy_K2, label_K]).tolist())
        return EstimatedBox(np.array([*(xy_K2[label_K == 1][0] - 5), 10, 10]), 1.0)

    monkeypatch.setattr(predictor._estimator, "estimate", estimate)
    return predictor, estimated_of


ON, ON_TOO, FAR, OFF = [8, 9, 1], [9, 10, 1], [25, 9, 1], [2, 2, 0]


@pytest.mark.parametrize(
    ("clicks", "expected"),
    [
        ([[ON], [ON, OFF], [ON, OFF, ON_TOO]], [[ON]]),
        ([[OFF, ON], [OFF, ON, ON_TOO]], [[OFF, ON]]),
        ([[ON], [ON, FAR], [ON, FAR, OFF]], [[ON], [ON, FAR]]),
        ([[ON], [OFF, ON]], [[ON], [OFF, ON]]),
        ([[ON, OFF], [ON]], [[ON, OFF], [ON]]),
        ([[ON, OFF], [ON], [ON, OFF]], [[ON, OFF], [ON]]),
        ([[ON], [ON_TOO]], [[ON], [ON_TOO]]),
    ],
    ids=[
        "further clicks", "off first", "outside the box", "another order", "a click taken back",
        "the same again", "another object",
    ],
)  # fmt: skip
def test_further_clicks_keep_the_box_and_all_else_starts_over(
    clicked: tuple[mal.Predictor, list[list[list[float]]]], clicks: list[Any], expected: list[Any]
) -> None:
    predictor, estimated_of = clicked
    for points in clicks:
        predictor.predict(IMAGE, points=points)
    assert estimated_of == expected


def test_a_click_on_another_image_starts_over(
    clicked: tuple[mal.Predictor, list[list[list[float]]]],
) -> None:
    predictor, estimated_of = clicked
    for image in (IMAGE, IMAGE + np.uint8(1), IMAGE):
        predictor.predict(image, points=[ON])
    assert estimated_of == [[ON], [ON]]


def test_a_model_without_its_settings_is_refused(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    content = torch.load(trained.result.checkpoint, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "foreign.pth")
    with pytest.raises(ArtifactError, match="without a spec"):
        mal.Predictor(tmp_path / "foreign.pth")
    shutil.copy(exported, tmp_path / "lonely.onnx")
    with pytest.raises(ArtifactError, match=r"lonely\.json is not beside it"):
        mal.Predictor(tmp_path / "lonely.onnx")
    with pytest.raises(StorageError, match="missing"):
        mal.Predictor(tmp_path / "missing.pth")


def test_models_behind_s3_bring_their_settings(trained: Trained, exported: Path, s3: Any) -> None:
    for path in (trained.result.checkpoint, exported, exported.with_name("mal_model.json")):
        s3.upload_file(str(path), "bucket", f"models/{path.name}")
    here = predict_set(mal.Predictor(exported), trained)
    for name in ("mal_model.onnx", "mal_model_latest.pth"):
        there = predict_set(mal.Predictor(f"s3://bucket/models/{name}"), trained)
        assert sum(int((a != b).sum()) for a, b in zip(here, there, strict=True)) <= 2
