"""The written page: whole, safe, small, and honest about what was not measured."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_sets import predict_rectangle, set_of_boxes
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes
from mal.errors import AnnotationError
from mal.evaluation import report
from mal.evaluation.metrics import Measurement, measure_masks
from mal.evaluation.report import MAX_PAGE_BYTES, write_report
from mal.labeling.masks import InstanceMask, PredictedMasks

SIZE = (64, 64)
NO_TRUE_MASKS = "no true masks: predictions shown, nothing measured"


class Elements(HTMLParser):
    """Collects tags with attributes, and the text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def attributes_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def gray_image(_: int) -> NDArray[np.uint8]:
    return np.full((*SIZE, 3), 120, dtype=np.uint8)


def predicted_set(
    num_boxes: int, *, num_categories: int = 2, with_masks: bool = True
) -> tuple[CocoBoxes, list[InstanceMask], Measurement]:
    rows = [(0, 1 + k % num_categories, (8, 8, 32, 32), (8, 8, 32, 32)) for k in range(num_boxes)]
    names = {1 + k: f"kind{k}" for k in range(num_categories)}
    boxes = set_of_boxes(rows, size=SIZE, categories=names, with_masks=with_masks)
    masks = [
        predict_rectangle(k, (8, 8, 32, 1 + k % 32), size=SIZE, score=(k % 100) / 100)
        for k in range(num_boxes)
    ]
    return boxes, masks, measure_masks(boxes, masks)


def page_of(tmp_path: Path, boxes: CocoBoxes, masks: list[InstanceMask], **changes: Any) -> str:
    path = tmp_path / "report.html"
    arguments: dict[str, Any] = {
        "title": "Evaluation",
        "metrics": {},
        "ious": None,
        "image_reader": gray_image,
        "facts": {"checkpoint": "mal_model_best.pth"},
        **changes,
    }
    write_report(path, boxes=boxes, masks=PredictedMasks.held(masks), **arguments)
    assert path.stat().st_size < MAX_PAGE_BYTES
    return path.read_text(encoding="utf-8")


def measured_page(tmp_path: Path, num_boxes: int, **changes: Any) -> Elements:
    boxes, masks, measured = predicted_set(num_boxes, num_categories=changes.pop("kinds", 2))
    arguments = {"metrics": measured.metrics, "ious": measured.instances, **changes}
    return Elements(page_of(tmp_path, boxes, masks, **arguments))


def test_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = measured_page(tmp_path, 60)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"], tag
    sources = [attributes["src"] or "" for attributes in page.attributes_of("img")]
    assert len(sources) == 36
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_pictures_and_chart_speak_to_who_cannot_see_them(tmp_path: Path) -> None:
    page = measured_page(tmp_path, 20)
    assert all(attributes["alt"] for attributes in page.attributes_of("img"))
    assert "median" in (page.attributes_of("svg")[0]["aria-label"] or "")
    assert page.attributes_of("html")[0]["lang"] == "en"


def test_metrics_stand_against_the_baselines(tmp_path: Path) -> None:
    boxes, masks, measured = predicted_set(32)
    text = page_of(tmp_path, boxes, masks, metrics=measured.metrics, ious=measured.instances)
    miou, box_iou = measured.metrics["mIoU"], measured.metrics["box_mIoU"]
    assert f"{miou:.3f}" in text
    difference = f"{miou - box_iou:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert f"{difference} vs plain box {box_iou:.3f}" in text
    assert NO_TRUE_MASKS not in text.lower()


@pytest.mark.parametrize(
    ("kinds", "captions"),
    [
        pytest.param(5, ["By category"], id="few are all listed"),
        pytest.param(
            80, ["Best 10 of 80 categories", "Worst 10 of 80 categories"], id="both ends of many"
        ),
    ],
)
def test_categories_are_listed_by_their_iou(
    tmp_path: Path, kinds: int, captions: list[str]
) -> None:
    text = measured_page(tmp_path, 160, kinds=kinds).text
    assert all(caption in text for caption in captions)


@pytest.mark.parametrize(
    ("num_boxes", "titles"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(5, ["All masks"], id="few are all drawn"),
        pytest.param(13, ["Worst masks", "Random sample of the others", "Best masks"], id="odd"),
        pytest.param(60, ["Worst masks", "Random sample of the others", "Best masks"], id="many"),
    ],
)
def test_every_object_is_drawn_at_most_once(
    tmp_path: Path, num_boxes: int, titles: list[str]
) -> None:
    text = measured_page(tmp_path, num_boxes).text
    ids = re.findall(r"id (\d+), score", text)
    assert len(ids) == len(set(ids)) == min(num_boxes, 36)
    assert [text.find(title) for title in titles] == sorted(text.find(title) for title in titles)
    assert -1 not in [text.find(title) for title in titles]


def test_without_true_masks_the_page_says_so_and_shows_predictions(tmp_path: Path) -> None:
    boxes, masks, measured = predicted_set(30, with_masks=False)
    html = page_of(tmp_path, boxes, masks, metrics=measured.metrics, ious=measured.instances)
    assert NO_TRUE_MASKS in html.lower()
    page = Elements(html)
    assert "Lowest scores" in page.text
    assert "true mask" not in page.text.replace("No true masks", "")
    assert "IoU" not in page.text
    assert len(page.attributes_of("img")) == 30


def test_labels_show_their_scores_without_any_notice(tmp_path: Path) -> None:
    boxes, masks, _ = predicted_set(40, with_masks=False)
    html = page_of(
        tmp_path, boxes, masks, title="Labels", metrics={"num_instances": 40, "mean_score": 0.5}
    )
    assert NO_TRUE_MASKS not in html.lower()
    text = Elements(html).text
    assert "Highest scores" in text
    assert "Score distribution" in text
    assert "Mean score" in text


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'"
    boxes, masks, _ = predicted_set(3, with_masks=False)
    named = set_of_boxes(
        [(0, 1, (8, 8, 32, 32), None)] * 3, size=SIZE, categories={1: evil}, with_masks=False
    )
    html = page_of(tmp_path, named, masks, title=evil, facts={evil: evil}, metrics={evil: 1})
    assert "<script" not in html
    assert Elements(html).text.count("<script>alert(1)</script>") >= 4
    assert len(boxes) == len(named)


def test_page_of_noise_stays_below_its_size_with_fewer_pictures(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 240, 3)).astype(np.uint8)
    size = (240, 240)
    rows = [(0, 1, (0, 0, 240, 240), (0, 0, 240, 200))] * 60
    boxes = set_of_boxes(rows, size=size)
    masks = [predict_rectangle(k, (0, 0, 240, 100 + k), size=size) for k in range(60)]
    measured = measure_masks(boxes, masks)
    page = Elements(
        page_of(
            tmp_path,
            boxes,
            masks,
            metrics=measured.metrics,
            ious=measured.instances,
            image_reader=lambda _: noise,
        )
    )
    assert len(page.attributes_of("img")) == 18


def test_a_page_that_no_picture_fits_on_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_PAGE_BYTES", 1)
    page = measured_page(tmp_path, 10)
    assert page.attributes_of("img") == []
    assert "By size" in page.text


@pytest.mark.parametrize(
    "error",
    [AnnotationError("image must exist, got a.jpg."), OSError("truncated")],
    ids=["missing", "truncated"],
)
def test_an_unreadable_image_leaves_its_caption(tmp_path: Path, error: Exception) -> None:
    def refuse(_: int) -> NDArray[np.uint8]:
        raise error

    page = measured_page(tmp_path, 4, image_reader=refuse)
    assert page.attributes_of("img") == []
    assert page.text.count("image cannot be read") == 4


def test_the_same_set_gives_the_same_page(tmp_path: Path) -> None:
    boxes, masks, _ = predicted_set(60)
    assert page_of(tmp_path, boxes, masks) == page_of(tmp_path, boxes, masks)
