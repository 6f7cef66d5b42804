"""What real boxes say of the sizes of objects."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.size_prior import SizePrior


def boxes_of(folder: Path, sides: dict[int, list[int]], *, num_points: int = 1) -> CocoBoxes:
    """Squares by category, and objects of the first with a point only."""
    annotations = [
        {"image_id": 1, "category_id": category, "bbox": [0, 0, side, side]}
        for category, own in sides.items()
        for side in own
    ]
    annotations += [{"image_id": 1, "category_id": 1, "points": [[5, 5, 1]]}] * num_points
    path = folder / "set.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.png", "width": 400, "height": 400}],
                "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bus"}],
                "annotations": annotations,
            }
        )
    )
    return load_boxes(path, with_masks=False)


def test_a_category_of_many_boxes_has_its_own_sizes(tmp_path: Path) -> None:
    prior = SizePrior.from_boxes(boxes_of(tmp_path, {1: [20] * 40, 2: [200] * 40}))
    assert prior.candidate_sides("cup", 400, 400)[2] == pytest.approx(20, rel=0.3)
    assert prior.candidate_sides("bus", 400, 400)[2] == pytest.approx(200, rel=0.3)
    assert prior.candidate_sides("unheard of", 400, 400)[2] == pytest.approx(63, rel=0.05)
    assert abs(prior.deviations("cup", np.array([0.0, 0, 20, 20]))) < 1
    assert prior.deviations("cup", np.array([0.0, 0, 300, 300])) > 2


def test_too_few_boxes_say_nothing_and_all_sizes_are_tried(tmp_path: Path) -> None:
    prior = SizePrior.from_boxes(boxes_of(tmp_path, {1: [20, 30]}))
    assert not prior
    sides = prior.candidate_sides("cup", 400, 100)
    assert sides == sorted(sides)
    assert sides[-1] == pytest.approx(180)
    assert prior.deviations("cup", np.array([0.0, 0, 300, 300])) == 0


def test_a_checkpoint_carries_it_as_plain_values(tmp_path: Path) -> None:
    prior = SizePrior.from_boxes(boxes_of(tmp_path, {1: [20, 30, 40, 50, 60]}))
    assert SizePrior.from_json(json.loads(json.dumps(prior.to_json()))) == prior
    assert math.exp(prior.log_side[""][0]) == pytest.approx(37.3, rel=0.01)
    assert not SizePrior.from_json(None)


def test_a_few_boxes_among_many_points_do_not_outweigh_what_a_network_was_trained_on(
    tmp_path: Path,
) -> None:
    trained = SizePrior({"": (math.log(100), 0.5)})
    few = boxes_of(tmp_path, {1: [6, 7, 8, 7, 6]}, num_points=100)
    assert SizePrior.for_set(few, trained) == trained
    assert SizePrior.for_set(few, SizePrior()) == SizePrior.from_boxes(few)
    enough = boxes_of(tmp_path, {1: [6, 7, 8, 7, 6]}, num_points=45)
    assert SizePrior.for_set(enough, trained) == SizePrior.from_boxes(enough)
