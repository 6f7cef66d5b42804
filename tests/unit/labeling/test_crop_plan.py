"""Boxes are sorted into batches of one crop size; none is lost, none waits for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.labeling.crop_plan import crop_size_for, plan_batches


@pytest.mark.parametrize(
    ("window_side", "expected"), [(1, 96), (96, 96), (97, 128), (200, 224), (224, 224), (900, 224)]
)
def test_a_window_gets_the_smallest_crop_that_holds_it(window_side: int, expected: int) -> None:
    assert crop_size_for(window_side, [224, 96, 128]) == expected


@given(st.lists(st.sampled_from([32, 64, 96]), max_size=40), st.integers(1, 5), st.integers(1, 9))
def test_every_box_is_in_one_batch_of_its_size(
    sizes: list[int], batch_size: int, max_waiting: int
) -> None:
    batches = list(plan_batches(sizes, batch_size, max_waiting))
    assert sorted(position for batch in batches for _, position in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= batch_size
        assert {size for size, _ in batch} == {sizes[batch[0][1]]}
        assert batch[-1][1] - batch[0][1] <= max_waiting


def test_one_crop_size_gives_batches_in_order() -> None:
    batches = list(plan_batches([32] * 7, 3))
    assert [[position for _, position in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
