"""Figures of hand-drawn sets, worked out on paper, and properties against plain arrays."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from drawn_sets import HeldSegmentations, Rectangle, predict_rectangle, set_of_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes
from mal.data.points import PointPrompts
from mal.errors import ArtifactError
from mal.evaluation.metrics import (
    category_names,
    compute_metrics,
    instances_by_size,
    measure_masks,
    size_of_box,
)
from mal.evaluation.metrics_text import reason_unmeasured, skipped_objects

MASK_METRICS = (
    "mIoU",
    "mIoU_small",
    "mIoU_medium",
    "mIoU_large",
    "mean_iou_instances",
    "AP",
    "AP50",
    "AP75",
    "box_iou",
    "ellipse_iou",
)


def rectangles(size: tuple[int, int]) -> Any:
    height, width = size

    def sized(corner: tuple[int, int]) -> Any:
        x, y = corner
        return st.tuples(
            st.just(x), st.just(y), st.integers(1, width - x), st.integers(1, height - y)
        )

    return st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)).flatmap(sized)


def segmentations_of(boxes: CocoBoxes) -> list[Any]:
    assert isinstance(boxes.segmentations, HeldSegmentations)
    return boxes.segmentations.held


def filled(rectangle: Rectangle, size: tuple[int, int]) -> NDArray[np.bool_]:
    x, y, w, h = rectangle
    mask = np.zeros(size, dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def iou_of(first: Rectangle, second: Rectangle, size: tuple[int, int] = (8, 8)) -> float:
    a, b = filled(first, size), filled(second, size)
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 2), rectangles((8, 8)), rectangles((8, 8))),
        min_size=1,
        max_size=8,
    )
)
def test_miou_is_the_mean_over_categories_of_instance_means(rows: Any) -> None:
    boxes = set_of_boxes([(i, c, t, t) for i, c, t, _ in rows], num_images=2)
    metrics = compute_metrics(
        boxes, [predict_rectangle(k, p) for k, (_, _, _, p) in enumerate(rows)]
    )
    ious = {c: [iou_of(t, p) for _, k, t, p in rows if k == c] for c in (1, 2)}
    expected = np.mean([np.mean(of_category) for of_category in ious.values() if of_category])
    assert metrics["mIoU"] == pytest.approx(expected)
    assert metrics["mean_iou_instances"] == pytest.approx(np.mean(ious[1] + ious[2]))
    assert metrics["mIoU_small"] == pytest.approx(expected)
    assert metrics["box_iou"] == pytest.approx(1.0)
    assert metrics["num_instances"] == sum(v["count"] for v in metrics["per_category"].values())
    assert 0 <= metrics["AP75"] <= metrics["AP50"] <= 1


@settings(max_examples=25)
@given(st.permutations(range(4)))
def test_order_of_predictions_does_not_matter(order: list[int]) -> None:
    truth = [(0, 0, 3, 3), (4, 4, 4, 4), (0, 5, 3, 2), (5, 0, 2, 3)]
    boxes = set_of_boxes([(0, 1 + k % 2, t, t) for k, t in enumerate(truth)])
    masks = [
        predict_rectangle(k, (t[0], t[1], t[2], t[3] - 1), score=0.2 * (k + 1))
        for k, t in enumerate(truth)
    ]
    assert measure_masks(boxes, [masks[k] for k in order]) == measure_masks(boxes, masks)


def test_categories_weigh_the_same_whatever_their_counts() -> None:
    rows = [(0, 1, (0, 0, 4, 4), (0, 0, 4, 4))] * 3 + [(0, 2, (4, 4, 4, 4), (4, 4, 4, 4))]
    masks = [predict_rectangle(k, (0, 0, 4, 4)) for k in range(3)]
    masks.append(predict_rectangle(3, (4, 4, 4, 2)))
    metrics = compute_metrics(set_of_boxes(rows), masks)
    assert metrics["mIoU"] == pytest.approx((1 + 0.5) / 2)
    assert metrics["mean_iou_instances"] == pytest.approx((3 + 0.5) / 4)
    assert metrics["per_category"] == {
        "cat": {"iou": 1.0, "count": 3},
        "dog": {"iou": 0.5, "count": 1},
    }


@pytest.mark.parametrize(
    ("side_w", "side_h", "size"),
    [
        pytest.param(32, 32, "small", id="32^2 is small"),
        pytest.param(32, 33, "medium", id="above 32^2"),
        pytest.param(96, 96, "medium", id="96^2 is medium"),
        pytest.param(96, 97, "large", id="above 96^2"),
    ],
)
def test_size_class_follows_the_box_area(side_w: int, side_h: int, size: str) -> None:
    assert size_of_box(side_w * side_h) == size
    box = (0, 0, side_w, side_h)
    measured = measure_masks(
        set_of_boxes([(0, 1, box, (0, 0, 4, 4))], size=(100, 100)),
        [predict_rectangle(0, (0, 0, 4, 2), size=(100, 100))],
    )
    figures: dict[str, Any] = {
        name: measured.metrics[f"mIoU_{name}"] for name in ("small", "medium", "large")
    }
    assert figures == {**dict.fromkeys(figures), size: 0.5}


@pytest.mark.parametrize(
    ("limits", "counted"),
    [
        pytest.param({}, [0, 1, 2], id="no limits"),
        pytest.param({"min_box_area": 4}, [1, 2], id="area strictly above"),
        pytest.param({"min_box_area": 3.9}, [0, 1, 2], id="area just below"),
        pytest.param({"min_box_side": 2}, [0, 2], id="both sides reach"),
        pytest.param({"min_box_side": 2.5, "min_box_area": 4}, [2], id="both limits"),
        pytest.param({"min_box_area": 1e6}, [], id="nothing left"),
    ],
)
def test_limits_choose_what_is_counted(limits: dict[str, float], counted: list[int]) -> None:
    shapes = [(0, 0, 2, 2), (0, 0, 1, 8), (4, 4, 3, 4)]
    boxes = set_of_boxes([(0, 1, shape, shape) for shape in shapes])
    masks = [predict_rectangle(k, shapes[k]) for k in counted]
    measured = measure_masks(boxes, masks, **limits)
    assert [score.index for score in measured.instances] == counted
    assert measured.metrics["num_instances"] == len(counted)
    assert measured.metrics["num_outside_limits_skipped"] == 3 - len(counted)
    assert (measured.metrics["mIoU"] is None) == (not counted)


SQUARE, BAR = (0, 0, 4, 4), (0, 0, 1, 8)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        pytest.param([], "no box", id="empty"),
        pytest.param([(0, 1, SQUARE, None)], "no true masks", id="no masks"),
        pytest.param([(0, 1, SQUARE, SQUARE, True)], "no box but crowds", id="crowds"),
        pytest.param([(0, 1, BAR, BAR)], "no box inside evaluate.min_box_area and", id="limits"),
        pytest.param(
            [(0, 1, BAR, BAR), (0, 1, SQUARE, None)],
            "no true masks inside evaluate.min_box_area and",
            id="masks outside the limits only",
        ),
    ],
)
def test_what_is_not_measured_has_its_true_reason(rows: list[Any], reason: str) -> None:
    masks = [predict_rectangle(k, SQUARE) for k in range(len(rows))]
    metrics = compute_metrics(set_of_boxes(rows), masks, min_box_side=2)
    assert metrics["mIoU"] is None
    assert reason_unmeasured(metrics).startswith(reason)
    assert reason_unmeasured(metrics).endswith("min_box_side") == ("inside" in reason)


def test_crowds_and_boxes_without_true_mask_are_skipped_and_counted() -> None:
    whole = (0, 0, 4, 4)
    boxes = set_of_boxes([(0, 1, whole, whole), (0, 1, whole, whole, True), (0, 2, whole, None)])
    segmentations_of(boxes)[1]["counts"] = "not measured"
    metrics = compute_metrics(boxes, [predict_rectangle(k, whole) for k in (0, 2)])
    assert metrics["num_instances"] == 1
    assert metrics["num_crowds_skipped"] == 1
    assert metrics["num_without_mask_skipped"] == 1
    assert (metrics["mIoU"], metrics["AP"]) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"size": [9, 9], "counts": "0"}, id="another size"),
        pytest.param(17, id="no segmentation at all"),
        pytest.param({"size": [8, 8], "counts": [64]}, id="empty"),
    ],
)
def test_one_unusable_true_mask_does_not_stop_the_measurement(broken: Any) -> None:
    whole = (0, 0, 4, 4)
    boxes = set_of_boxes([(0, 1, whole, whole), (0, 1, whole, whole)])
    segmentations_of(boxes)[1] = broken
    metrics = compute_metrics(boxes, [predict_rectangle(k, whole) for k in (0, 1)])
    assert (metrics["num_instances"], metrics["num_without_mask_skipped"]) == (1, 1)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        pytest.param({"size": [9, 9], "counts": "0"}, "cannot be read", id="unreadable"),
        pytest.param({"size": [8, 8], "counts": [64]}, "empty", id="empty"),
    ],
)
@pytest.mark.parametrize("num_broken", [2, 3])
def test_true_masks_that_cannot_be_used_are_counted_and_named(
    num_broken: int, broken: Any, words: str
) -> None:
    whole = (0, 0, 4, 4)
    boxes = set_of_boxes([(0, 1, whole, whole)] * 3)
    for row in range(num_broken):
        segmentations_of(boxes)[row] = broken
    measured = measure_masks(boxes, [predict_rectangle(k, whole) for k in range(3)])
    assert f"{num_broken} of 3 true masks" in measured.warning
    assert words in measured.warning
    metrics = measured.metrics
    assert f"{num_broken} whose true mask" in ", ".join(skipped_objects(metrics))
    assert metrics["num_instances"] == 3 - num_broken
    assert (metrics["mIoU"] is None) is (num_broken == 3)
    if num_broken == 3:
        assert words in reason_unmeasured(metrics)


@pytest.mark.parametrize("with_masks", [True, False], ids=["none in file", "not asked for"])
def test_without_true_masks_every_mask_figure_is_none(with_masks: bool) -> None:
    boxes = set_of_boxes([(0, 1, (0, 0, 4, 4), None)], with_masks=with_masks)
    metrics = compute_metrics(boxes, [predict_rectangle(0, (0, 0, 4, 4))])
    assert {name: metrics[name] for name in MASK_METRICS} == dict.fromkeys(MASK_METRICS)
    assert metrics["per_category"] == {}
    assert metrics["num_instances"] == 0


def test_a_set_without_boxes_has_no_metrics() -> None:
    metrics = compute_metrics(set_of_boxes([]), [])
    assert metrics["mIoU"] is None
    assert metrics["num_instances"] == 0


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        pytest.param([0], (8, 8), "none for 1 of 2.*annotation 11", id="missing"),
        pytest.param([0, 1, 1], (8, 8), "two for annotation 11", id="twice"),
        pytest.param([0, 1, 2], (8, 8), "one for row 2", id="unknown row"),
        pytest.param([0, 1], (8, 9), "image's size 8 x 8, got", id="another image size"),
    ],
)
def test_predictions_that_do_not_fit_the_set_are_refused(
    indices: list[int], size: tuple[int, int], message: str
) -> None:
    whole = (0, 0, 4, 4)
    boxes = set_of_boxes([(0, 1, whole, whole), (0, 1, whole, whole)])
    masks = [predict_rectangle(k, whole, size=size) for k in indices]
    with pytest.raises(ArtifactError, match=message):
        compute_metrics(boxes, masks)


def test_baselines_are_those_of_box_and_ellipse() -> None:
    box, truth = (0, 0, 8, 8), (0, 0, 8, 4)
    metrics = compute_metrics(set_of_boxes([(0, 1, box, truth)]), [predict_rectangle(0, truth)])
    assert metrics["mIoU"] == 1.0
    assert metrics["box_iou"] == 0.5
    # The ellipse of 8 x 8 fills 4 + 6 + 8 + 8 pixels of each half.
    assert metrics["ellipse_iou"] == pytest.approx(26 / (26 + 32))


def test_empty_prediction_scores_zero() -> None:
    truth = (0, 0, 4, 4)
    empty = predict_rectangle(0, (0, 0, 0, 0), score=0.0)
    metrics = compute_metrics(set_of_boxes([(0, 1, truth, truth)]), [empty])
    assert (metrics["mIoU"], metrics["AP50"]) == (0.0, 0.0)


def test_names_used_by_two_categories_stay_apart() -> None:
    boxes = set_of_boxes([], categories={1: "cat", 2: "dog", 7: "cat"})
    assert category_names(boxes) == {1: "cat (1)", 2: "dog", 7: "cat (7)"}


def test_metrics_are_plain_json_values() -> None:
    truth = (0, 0, 4, 4)
    metrics = compute_metrics(set_of_boxes([(0, 1, truth, truth)]), [predict_rectangle(0, truth)])
    assert {type(v) for v in metrics.values()} <= {float, int, bool, dict, type(None)}


def test_instances_are_grouped_by_size_with_all_sizes_present() -> None:
    truth = (0, 0, 4, 4)
    boxes = set_of_boxes([(0, 1, truth, truth)])
    measured = measure_masks(boxes, [predict_rectangle(0, truth)])
    groups = instances_by_size(boxes, measured.instances)
    assert list(groups) == ["small", "medium", "large"]
    assert [len(group) for group in groups.values()] == [1, 0, 0]
    assert dataclasses.astuple(groups["small"][0])[:2] == (0, 1.0)


def test_the_size_of_an_object_of_points_only_is_that_of_its_true_mask() -> None:
    """However large a model takes it for."""
    truth, size = (0, 0, 40, 40), (200, 200)
    groups = []
    for estimate in ((0, 0, 20, 20), truth, (0, 0, 190, 190)):
        boxes = dataclasses.replace(
            set_of_boxes([(0, 1, estimate, truth), (0, 1, estimate, truth)], size=size),
            points=PointPrompts.from_lists([[(5, 5, 1)], []], [True, False]),
        )
        masks = [predict_rectangle(row, truth, size=size) for row in range(2)]
        by_size = instances_by_size(boxes, measure_masks(boxes, masks).instances)
        groups.append({score.index: name for name, scores in by_size.items() for score in scores})
    assert [group[0] for group in groups] == ["medium"] * 3
    assert [group[1] for group in groups] == ["small", "medium", "large"]
