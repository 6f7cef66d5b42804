"""The tables at the end of a local run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mal.evaluation.baselines import usefulness_warning

from ._local import LocalRun
from ._step_log import StepRecord

_SIZES = ("small", "medium", "large")


def print_summary(run: LocalRun, console: Console) -> None:
    """Print the steps with their time, the metrics, and the paths of the outputs."""
    console.print()
    console.print(steps_table(run.steps))
    if "metrics" in run.outputs:
        metrics = json.loads(run.outputs["metrics"].read_text(encoding="utf-8"))
        console.print(metrics_table(metrics))
        if warning := usefulness_warning(metrics):
            console.print(f"Warning: {warning}", highlight=False, markup=False)
    for name, path in run.outputs.items():
        console.print(f"{name:<8} {path}", soft_wrap=True, highlight=False, markup=False)


def steps_table(steps: Sequence[StepRecord]) -> Table:
    """Tabulate steps and seconds."""
    table = Table("step", title="Steps", title_justify="left")
    table.add_column("seconds", justify="right")
    for step in steps:
        table.add_row(step.name, f"{step.duration_s:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(step.duration_s for step in steps):.1f}")
    return table


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Tabulate the IoU of masks and of the plain boxes: overall, by size and by category."""
    table = Table("objects", title="IoU with the true masks", title_justify="left")
    for column in ("predicted", "plain box", "ellipse", "count"):
        table.add_column(column, justify="right")
    table.add_row(
        "all, mean over categories (mIoU)",
        _metric_text(metrics.get("mIoU")),
        _metric_text(metrics.get("box_mIoU")),
        _metric_text(metrics.get("ellipse_mIoU")),
        _count(metrics.get("num_instances")),
    )
    table.add_row(
        "all, mean over objects",
        _metric_text(metrics.get("mean_iou_instances")),
        _metric_text(metrics.get("box_iou")),
        _metric_text(metrics.get("ellipse_iou")),
    )
    for size in _SIZES:
        if metrics.get(f"mIoU_{size}") is not None:
            table.add_row(f"{size} (mIoU)", _metric_text(metrics[f"mIoU_{size}"]))
    table.add_section()
    for name, category in (metrics.get("per_category") or {}).items():
        table.add_row(
            name,
            _metric_text(category["iou"]),
            _metric_text(metrics["box_iou_per_category"].get(name)),
            _metric_text(metrics["ellipse_iou_per_category"].get(name)),
            _count(category["count"]),
        )
    if metrics.get("mIoU") is None:
        table.caption = "No true masks were given: there is nothing to measure against."
    return table


def _metric_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
