"""Average precision against COCOeval's own settings, and where ours must differ from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_sets import predict_rectangle, rle_of_rectangle, set_of_boxes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mal.data.annotations import CocoBoxes, Rle
from mal.evaluation.average_precision import average_precision
from mal.labeling.coco_rle import rle_to_json
from mal.labeling.masks import InstanceMask

SIZE = (64, 64)


def random_set(
    num_boxes: int, num_images: int, seed: int
) -> tuple[CocoBoxes, list[InstanceMask], dict[int, Rle]]:
    rng = np.random.default_rng(seed)
    rows, masks, true_rles = [], [], {}
    for index in range(num_boxes):
        x, y = (int(v) for v in rng.integers(0, 40, 2))
        w, h = (int(v) for v in rng.integers(4, 20, 2))
        rows.append((int(rng.integers(num_images)), 1 + index % 2, (x, y, w, h), (x, y, w, h)))
        lost = int(rng.integers(0, h // 2))
        score = round(float(rng.random()), 3)
        masks.append(predict_rectangle(index, (x, y, w, h - lost), size=SIZE, score=score))
        true_rles[index] = rle_of_rectangle((x, y, w, h), SIZE)
    return set_of_boxes(rows, size=SIZE, num_images=num_images), masks, true_rles


def metrics_of_cocoeval(
    tmp_path: Path, boxes: CocoBoxes, masks: list[InstanceMask], true_rles: dict[int, Rle]
) -> dict[str, float]:
    """Evaluate through files with COCO's defaults, as anybody would."""

    def entry(index: int, rle: Rle) -> dict[str, Any]:
        return {
            "id": index + 1,
            "image_id": int(boxes.image_index_N[index]),
            "category_id": int(boxes.category_id_N[index]),
            "segmentation": rle_to_json(rle),
            "area": float(boxes.box_area_N[index]),
            "bbox": boxes.box_xywh_N4[index].tolist(),
            "iscrowd": 0,
        }

    document = {
        "images": [
            {"id": k, "width": SIZE[1], "height": SIZE[0]} for k in range(len(boxes.images))
        ],
        "categories": [{"id": k, "name": v} for k, v in boxes.categories.items()],
        "annotations": [entry(index, rle) for index, rle in true_rles.items()],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    truth = COCO(str(path))
    found = truth.loadRes([{**entry(m.index, m.rle), "score": m.score} for m in masks])
    judge = COCOeval(truth, found, "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return dict(zip(("AP", "AP50", "AP75"), judge.stats[:3], strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_those_of_cocoeval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    boxes, masks, true_rles = random_set(40, 5, seed)
    expected = metrics_of_cocoeval(tmp_path, boxes, masks, true_rles)
    capsys.readouterr()
    metrics = average_precision(boxes, masks, true_rles)
    assert metrics == pytest.approx(expected)
    assert 0 < (metrics["AP75"] or 0) < (metrics["AP50"] or 0) <= 1
    assert capsys.readouterr().out == ""


def test_more_than_a_hundred_instances_of_one_image_all_count() -> None:
    spots = [(x, y, 3, 3) for x in range(0, 60, 4) for y in range(0, 60, 4)]
    boxes = set_of_boxes([(0, 1, spot, spot) for spot in spots], size=SIZE)
    masks = [predict_rectangle(k, spot, size=SIZE) for k, spot in enumerate(spots)]
    true_rles = {k: rle_of_rectangle(spot, SIZE) for k, spot in enumerate(spots)}
    assert len(spots) > 200
    assert average_precision(boxes, masks, true_rles) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}


@pytest.mark.parametrize(
    ("score_of_good", "score_of_bad", "expected"),
    [
        pytest.param(0.9, 0.1, 0.5, id="good mask first"),
        pytest.param(0.1, 0.9, 0.25, id="bad mask first"),
    ],
)
def test_ranking_by_score_matters(
    score_of_good: float, score_of_bad: float, expected: float
) -> None:
    spots = [(0, 0, 8, 8), (20, 20, 8, 8)]
    boxes = set_of_boxes([(0, 1, spot, spot) for spot in spots], size=SIZE)
    masks = [
        predict_rectangle(0, spots[0], size=SIZE, score=score_of_good),
        predict_rectangle(1, (20, 20, 8, 1), size=SIZE, score=score_of_bad),
    ]
    true_rles = {k: rle_of_rectangle(spot, SIZE) for k, spot in enumerate(spots)}
    metrics = average_precision(boxes, masks, true_rles)
    # Recall stops at one of two, 51 of the 101 recall steps, at precision 1 or 1/2.
    assert metrics["AP50"] == pytest.approx(expected, abs=0.01)


def test_no_truth_gives_no_metrics() -> None:
    assert average_precision(set_of_boxes([]), [], {}) == dict.fromkeys(("AP", "AP50", "AP75"))
