"""The Markdown pages on which Kubeflow's UI shows the results of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mal.evaluation.baselines import BASELINES, usefulness_warning
from mal.evaluation.metrics_text import measured_objects, reason_unmeasured
from mal.registry.changes import Detection
from mal.registry.promotion import Outcome
from mal.registry.snapshot import DatasetManifest
from mal.storage import redact_uri

MAX_VALUE_CHARS = 200


def detection_markdown(detection: Detection) -> str:
    """Report whether the data set changed enough to train again."""
    counts, changes = detection.train.num_boxes, detection.changes
    return _page(
        "New annotations: training" if detection.is_changed else "Nothing to train on: skipped",
        f"{detection.reason[:1].upper()}{detection.reason[1:]}.",
        markdown_table(
            ("boxes", "new", "changed", "removed"),
            [(counts, changes.num_new, changes.num_changed, changes.num_removed)],
        ),
        markdown_table(
            ("part", "annotations", "sha256", "images"),
            [
                (
                    name,
                    redact_uri(part.annotations_uri),
                    part.annotations_sha256,
                    redact_uri(part.images_uri),
                )
                for name, part in detection.parts.items()
            ],
        ),
    )


def outcome_markdown(outcome: Outcome) -> str:
    """Report the gate's decision, check by check."""
    rows = [
        (
            check.name,
            "" if check.champion is None else check.champion,
            "" if check.challenger is None else check.challenger,
            check.rule,
            "passed" if check.is_passed else "**failed**",
        )
        for check in outcome.decision.checks
    ]
    return _page(
        f"{'Promoted' if outcome.decision.is_passed else 'Refused'}: {outcome.version}",
        f"{outcome.sentence}.",
        outcome.registry_error,
        markdown_table(("check", "champion", "challenger", "rule", ""), rows),
    )


def evaluation_markdown(data: DatasetManifest, metrics: Mapping[str, Any]) -> str:
    """Show mIoU, and the IoU of every category beside that of the plain boxes."""
    part = data.evaluated_part
    if metrics.get("mIoU") is None:
        return _page("Nothing was measured", f"Of the {part}: {reason_unmeasured(metrics)}.")
    rows = [("all (mIoU)", metrics["mIoU"], metrics["box_mIoU"], metrics["num_instances"])]
    plain = metrics["box_iou_per_category"]
    rows += [
        (name, category["iou"], plain.get(name), category["count"])
        for name, category in metrics["per_category"].items()
    ]
    baselines = [
        (f"{BASELINES[name]}, no training", iou)
        for name, iou in metrics["baselines"].items()
        if iou is not None
    ]
    warning = usefulness_warning(metrics)
    return _page(
        f"mIoU {metrics['mIoU']:.4f}",
        f"**Warning:** {warning}" if warning else "",
        f"Measured on the {part}: {measured_objects(metrics)}.",
        markdown_table(
            ("masks of", "mean IoU"), [("the model", metrics["mean_iou_instances"]), *baselines]
        ),
        markdown_table(("objects", "IoU", "IoU of the plain boxes", "count"), rows),
    )


def metadata_markdown(title: str, metadata: Mapping[str, object]) -> str:
    """Show metadata as a table, without values that are too long to read."""
    shown = {name: value for name, value in metadata.items() if len(str(value)) <= MAX_VALUE_CHARS}
    return _page(title, markdown_table(("key", "value"), shown.items()))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join([f"## {title}", *filter(None, blocks)]) + "\n"
