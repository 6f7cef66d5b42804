"""The pages of the steps as Kubeflow's UI shows them."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from kfp_artifact import Artifact
from kfp_page import rendered
from test_specs import WITH_VAL

from mal.lineage.page_record import with_record
from mal.markdown import escaped
from mal.registry.gate import Check, Decision
from mal.registry.promotion import Outcome
from mal.steps.metadata import flat_metrics
from mal.steps.page import StepPage, page_table, pictures_of_report
from mal.steps.summaries import evaluation_markdown, onnx_markdown, outcome_markdown

KFP_ROWS = 10  # PagedTable.tsx: rowsPerPage, sorted by the first column
PIXEL = "data:image/jpeg;base64," + "A" * 40
METRICS = {
    "mIoU": 0.7,
    "mIoU_small": 0.6,
    "mIoU_medium": 0.6,
    "mIoU_large": 0.6,
    "box_mIoU": 0.5,
    "num_instances": 4,
    "per_category": {name: {"iou": 0.71, "count": 4} for name in ("Cell", "a_b_c", "zebra")},
    "box_iou_per_category": {"a_b_c": 0.52},
    "mean_iou_instances": 0.7,
    "AP": 0.4,
    "AP50": 0.6,
    "AP75": 0.5,
    "box_iou": 0.5,
    "ellipse_iou": 0.62,
    "ellipse_mIoU": 0.62,
    "baselines": {"box": 0.5, "ellipse": 0.62, "grabcut": None},
    "num_crowds_skipped": 0,
}
ONNX = {
    "display_name": "onnx f00d (tiny)",
    "pipeline_name": "auto-label",
    "sha256": "f0" * 32,
    "parity_max_abs_diff": 1.5e-6,
    "input_shape": "N,3,32,32",
    "opset": 18.0,
    "model_uri": "minio://mlpipeline/v2/artifacts/auto_label/model dir/x",
    "model_sha256": "e0" * 32,
}


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    cards = (
        f'<img src="{PIXEL}" width="240" alt="{name}: mask drawn on the image, IoU {iou}">'
        for name, iou in (("cat in a_b.png", 0.1), ("cat in c.png", 0.5), ("dog in d.png", 0.9))
    )
    path.write_text("".join(cards), encoding="utf-8")
    return path


def test_names_with_underscores_and_stars_are_shown_as_they_are() -> None:
    names = ["parity_max_abs_diff", "a*b*c", "x|y", "[1] <b> `c` ~d~", "C:\\new_dir_x"]
    page = page_table(("key_of_it", "value"), [(name, 1.0) for name in names])
    shown = text_of(rendered(page))
    assert "key_of_it" in shown
    for name in names:
        assert name in shown
    assert "<em>" not in rendered(f"{escaped('a_b_c d_e_f')}\n")


def test_a_page_begins_with_numbers_then_says_what_to_do_and_ends_with_short_digests(
    report: Path,
) -> None:
    page = StepPage(
        "mIoU 0.7",
        {"mIoU": 0.7, "no training": 0.5},
        pictures=pictures_of_report(report),
        next_step="label.",
        links={"the_model": "s3://b/a_b_c/model dir"},
        tables=[page_table(("key",), [("value",)])],
        digests={"content": "ab" * 32, "image": f"sha256:{'cd' * 32}", "commit": ""},
    ).markdown()
    markup = rendered(page)
    positions = [
        markup.index(part)
        for part in ("<h2", "<strong>0.7", PIXEL, "<strong>Next", "<a href", "value", "Digests")
    ]
    assert positions == sorted(positions)
    assert 'href="s3://b/a_b_c/model%20dir"' in markup
    assert page.rstrip().endswith("Digests: content `abababababab`, image `cdcdcdcdcdcd`")
    assert markup.count("<img") == 2
    assert "cat in a_b.png, IoU 0.1; dog in d.png, IoU 0.9" in text_of(markup)


def test_the_record_of_a_page_is_not_shown() -> None:
    page = with_record(
        onnx_markdown(ONNX), onnx=Artifact("/onnx", {**ONNX, "x": "<b> --> `c` {d}"})
    )
    shown = text_of(rendered(page))
    assert "mal-lineage" not in shown
    assert "{" not in shown
    assert "parity_max_abs_diff" in shown
    assert shown.rstrip().endswith("e0e0e0e0e0e0")


def test_an_evaluation_shows_its_numbers_and_pictures_first(report: Path) -> None:
    page = evaluation_markdown(WITH_VAL, METRICS, report)
    before, _, after = rendered(page).partition("<strong>Next")
    assert before.count("<strong>") == 3
    assert before.count("<img") == 2
    assert "a_b_c" in text_of(after)


def test_a_refusal_says_what_can_be_done() -> None:
    checks = (Check("mIoU", 0.5, 0.6, "must be at least 0.595", False),)
    page = text_of(rendered(outcome_markdown(Outcome("v_2_x", "v1", "v1", Decision(checks)))))
    assert "Refused: v_2_x" in page
    assert "mal pipelines promote --store STORE --to VERSION" in page


def test_the_first_page_of_metrics_has_those_that_matter() -> None:
    first = sorted(flat_metrics(METRICS))[:KFP_ROWS]
    assert {"mIoU", "AP", "box_mIoU", "ellipse_mIoU"} <= set(first)
