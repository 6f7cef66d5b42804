"""Geometry of the histogram: every value in one bar, every bar inside the plot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.evaluation.histogram import NUM_BINS, Histogram, lay_out_histogram

unit_values = st.lists(st.floats(0, 1), max_size=60)


def counts_of(histogram: Histogram) -> list[int]:
    return [int(bar.label.rsplit(" ", 1)[1]) for bar in histogram.bars]


@settings(max_examples=60)
@given(unit_values, unit_values)
def test_every_value_is_counted_once_and_drawn_inside_the_plot(
    values: list[float], reference: list[float]
) -> None:
    drawn = lay_out_histogram(values, "IoU", reference)
    assert sum(counts_of(drawn)) == len(values)
    assert len(drawn.bars) == NUM_BINS
    for bar in drawn.bars:
        assert drawn.left <= bar.x
        assert bar.x + bar.width <= drawn.right
        assert drawn.top - 0.01 <= bar.y
        assert bar.y + bar.height == pytest.approx(drawn.bottom)
    for point in drawn.reference_points.split():
        x, y = (float(number) for number in point.split(","))
        assert drawn.left <= x <= drawn.right
        assert drawn.top - 0.01 <= y <= drawn.bottom


@pytest.mark.parametrize(
    ("num_values", "marks"),
    [
        pytest.param(0, ["0", "1"], id="no values"),
        pytest.param(3, ["0", "1", "2", "3"], id="few"),
        pytest.param(7, ["0", "2", "4", "6", "8"], id="steps of two"),
        pytest.param(4200, ["0", "1,000", "2,000", "3,000", "4,000", "5,000"], id="thousands"),
    ],
)
def test_count_axis_has_a_handful_of_round_marks(num_values: int, marks: list[str]) -> None:
    assert [tick.text for tick in lay_out_histogram([0.5] * num_values, "IoU").y_ticks] == marks


def test_summary_says_in_words_what_the_bars_show() -> None:
    drawn = lay_out_histogram([0.2, 0.4, 0.6, 0.8, 1.0], "IoU")
    assert drawn.summary == "IoU of 5 objects: half lie between 0.40 and 0.80, median 0.60."
    assert drawn.mean is not None
    assert drawn.mean.text == "mean 0.600"
    assert lay_out_histogram([], "IoU").summary == "IoU: no values."
