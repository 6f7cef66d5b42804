"""What the UI shows of a step in words."""

from __future__ import annotations

import pytest
from test_specs import WITH_VAL, WITHOUT_VAL

from mal.markdown import markdown_table
from mal.registry.box_index import BoxChanges
from mal.registry.changes import Detection, SourcePart
from mal.registry.gate import Check, Decision
from mal.registry.promotion import Outcome
from mal.steps.summaries import (
    detection_markdown,
    evaluation_markdown,
    model_markdown,
    outcome_markdown,
)

PART = SourcePart("s3://b/images", "s3://b/a|b.json", "a" * 64, "", "/frozen", "b" * 64, 9, 0.0)


@pytest.mark.parametrize(
    ("is_changed", "title"), [(True, "## New annotations"), (False, "## Nothing to train on")]
)
def test_a_detection_says_whether_and_why(is_changed: bool, title: str) -> None:
    changes = BoxChanges(3, 2, 1)
    found = Detection(is_changed, "so it is", changes, "c" * 64, "t", "/store", "", PART, None)
    text = detection_markdown(found)
    assert text.startswith(title)
    assert "So it is." in text
    assert "| 9 | 3 | 2 | 1 |" in text
    assert "[train annotations](s3://b/a%7Cb.json)" in text


@pytest.mark.parametrize(
    ("is_promoted", "title"), [(True, "## Promoted: v2"), (False, "## Refused: v2")]
)
def test_a_decision_is_shown_check_by_check(is_promoted: bool, title: str) -> None:
    checks = (
        Check("mIoU", 0.61, 0.6, "must be at least 0.595", True),
        Check("IoU of dog", None, 0.5, "must be at least 0.45", is_promoted),
    )
    champion = "v2" if is_promoted else "v1"
    text = outcome_markdown(Outcome("v2", champion, "v1", Decision(checks), "the registry is down"))
    assert text.startswith(title)
    assert "| mIoU | 0.6 | 0.61 | must be at least 0.595 | passed |" in text
    assert "the registry is down" in text
    assert ("FAILED" in text) is not is_promoted


def test_an_evaluation_shows_every_category_beside_its_plain_boxes() -> None:
    metrics = {
        "mIoU": 0.7,
        "box_mIoU": 0.5,
        "num_instances": 4,
        "per_category": {"cat": {"iou": 0.71, "count": 4}},
        "box_iou_per_category": {"cat": 0.52},
        "mean_iou_instances": 0.7,
        "box_iou": 0.5,
        "ellipse_iou": 0.72,
        "baselines": {"box": 0.5, "ellipse": 0.72, "grabcut": None},
        "num_crowds_skipped": 2,
    }
    text = evaluation_markdown(WITH_VAL, metrics)
    assert text.startswith("## mIoU 0.7000")
    assert "| cat | 0.71 | 0.52 | 4 |" in text
    assert "| inscribed ellipse, no training | 0.72 |" in text
    assert "GrabCut" not in text
    assert "**Warning:** the model is not worth using" in text
    assert "measured 4 objects; left out: 2 crowds" in text


def test_an_evaluation_without_masks_says_so() -> None:
    text = evaluation_markdown(WITHOUT_VAL, {"mIoU": None})
    assert "Nothing was measured" in text
    assert "training part" in text


def test_long_values_are_left_to_the_metadata() -> None:
    text = model_markdown({"sha256": "a" * 64, "best_params": "x" * 5000})
    assert "content `aaaaaaaaaaaa`" in text
    assert "best" not in text


def test_a_table_survives_bars_and_line_breaks() -> None:
    assert markdown_table(("a",), [("x|y\nz",)]).splitlines()[-1] == "| x\\|y z |"
