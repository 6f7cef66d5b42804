"""Which estimated boxes a training learns from."""

from __future__ import annotations

import numpy as np

from mal.labeling.box_estimation import EstimatedBox
from mal.stages.point_training import most_certain


def rows_kept(*consistencies: float) -> list[int]:
    estimates = [
        (row, EstimatedBox(np.zeros(4), consistency))
        for row, consistency in enumerate(consistencies)
    ]
    return sorted(row for row, _ in most_certain(estimates))


def test_the_least_consistent_quarter_stays_away() -> None:
    assert rows_kept(0.5, 0.8, 0.1, 0.3, 0.2, 0.9, 0.7, 0.6) == [0, 1, 3, 5, 6, 7]


def test_how_sure_a_network_is_of_everything_does_not_matter() -> None:
    assert rows_kept(0.05, 0.08, 0.01, 0.03) == rows_kept(0.5, 0.8, 0.1, 0.3)


def test_objects_of_unreadable_images_stay_away() -> None:
    assert rows_kept(0.0, 0.4) == [1]
    assert rows_kept(0.0, 0.0) == []


def test_a_single_object_is_kept() -> None:
    assert rows_kept(0.4) == [0]
