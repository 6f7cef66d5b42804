"""The geometry of a histogram in [0, 1] for an inline SVG: numbers only, the template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 20
WIDTH_PX = 720
HEIGHT_PX = 260
_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 56, 12, 22, 48
_BAR_GAP_PX = 2
_MAX_TICKS = 5

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Bar:
    """One bin: its rectangle, and a sentence for who cannot see it."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Tick:
    """One mark of an axis: its position along the axis, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """Everything that the template draws, in px of the SVG's view box.

    Attributes:
        left, right, top, bottom: Edges of the plot.
        bars: One per bin.
        x_ticks, y_ticks: Marks of the axes.
        reference_points: `points` of a stepped line for the reference, or ''.
        mean: Position and text of the mean, or None without values.
        x_title: What is counted.
        summary: Text for screen readers.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    reference_points: str
    mean: Tick | None
    x_title: str
    summary: str


def lay_out_histogram(values: Values, x_title: str, reference: Values = ()) -> Histogram:
    """Lay out bars, axes and, as a stepped line, a second set of values to compare with.

    Args:
        values: In [0, 1].
        x_title: What the values are.
        reference: In [0, 1]; empty for none.
    """
    edges = [k / NUM_BINS for k in range(NUM_BINS + 1)]
    counts: list[int] = np.histogram(values, bins=edges)[0].tolist()
    reference_counts: list[int] = (
        np.histogram(reference, bins=edges)[0].tolist() if len(reference) else []
    )
    highest = max([1, *counts, *reference_counts])
    step = _tick_step(highest)
    top_count = step * math.ceil(highest / step)
    right, bottom = WIDTH_PX - _RIGHT_PX, HEIGHT_PX - _BOTTOM_PX

    def x_of(value: float) -> float:
        return round(_LEFT_PX + value * (right - _LEFT_PX), 2)

    def y_of(count: int) -> float:
        return round(bottom - count / top_count * (bottom - _TOP_PX), 2)

    bars = tuple(
        Bar(
            x=x_of(edges[k]) + _BAR_GAP_PX / 2,
            y=y_of(count),
            width=round(x_of(edges[k + 1]) - x_of(edges[k]) - _BAR_GAP_PX, 2),
            height=round(bottom - y_of(count), 2),
            label=f"{edges[k]:.2f} to {edges[k + 1]:.2f}: {count}",
        )
        for k, count in enumerate(counts)
    )
    mean = float(np.mean(values)) if len(values) else None
    return Histogram(
        width=WIDTH_PX,
        height=HEIGHT_PX,
        left=_LEFT_PX,
        right=right,
        top=_TOP_PX,
        bottom=bottom,
        bars=bars,
        x_ticks=tuple(Tick(x_of(k / 10), f"{k / 10:.1f}") for k in range(0, 11, 2)),
        y_ticks=tuple(Tick(y_of(count), f"{count:,}") for count in range(0, top_count + 1, step)),
        reference_points=" ".join(
            f"{x_of(edges[k + side])},{y_of(count)}"
            for k, count in enumerate(reference_counts)
            for side in (0, 1)
        ),
        mean=None if mean is None else Tick(x_of(mean), f"mean {mean:.3f}"),
        x_title=x_title,
        summary=_summarize(values, x_title),
    )


def _tick_step(top_count: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that needs at most a handful of ticks."""
    step, decade = 1, 1
    while True:
        for factor in (1, 2, 5):
            step = factor * decade
            if top_count <= step * _MAX_TICKS:
                return step
        decade *= 10


def _summarize(values: Values, x_title: str) -> str:
    if not len(values):
        return f"{x_title}: no values."
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return (
        f"{x_title} of {len(values):,} objects: half lie between {low:.2f} and {high:.2f}, "
        f"median {middle:.2f}."
    )
