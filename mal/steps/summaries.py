"""What a step says of itself in Kubeflow's UI, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mal.evaluation.baselines import BASELINES, usefulness_warning
from mal.evaluation.metrics_text import measured_objects, reason_unmeasured
from mal.registry.changes import Detection
from mal.registry.promotion import Outcome
from mal.registry.snapshot import DatasetManifest
from mal.storage import redact_uri

MAX_FACT_CHARS = 200


def detection_markdown(found: Detection) -> str:
    """Say whether there is something to train on, and why."""
    parts = [("train", found.train), *([("val", found.val)] if found.val else [])]
    return _page(
        "New annotations: training" if found.is_changed else "Nothing to train on: skipped",
        f"{found.reason[:1].upper()}{found.reason[1:]}.",
        markdown_table(
            ("boxes", "new", "changed", "removed"),
            [
                (
                    found.train.num_boxes,
                    found.changes.num_new,
                    found.changes.num_changed,
                    found.changes.num_removed,
                )
            ],
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
                for name, part in parts
            ],
        ),
    )


def outcome_markdown(outcome: Outcome) -> str:
    """Say what became of a candidate, check by check."""
    return _page(
        f"{'Promoted' if outcome.decision.is_passed else 'Refused'}: {outcome.version}",
        f"{outcome.sentence}.",
        outcome.registry_trouble,
        markdown_table(
            ("check", "champion", "challenger", "rule", ""),
            [
                (
                    check.name,
                    "" if check.champion is None else check.champion,
                    "" if check.challenger is None else check.challenger,
                    check.rule,
                    "passed" if check.is_passed else "**failed**",
                )
                for check in outcome.decision.checks
            ],
        ),
    )


def evaluation_markdown(data: DatasetManifest, metrics: Mapping[str, Any]) -> str:
    """Show mIoU and the IoU of every category beside that of the plain boxes."""
    part = data.evaluated_part
    if metrics.get("mIoU") is None:
        reason = reason_unmeasured(metrics)
        return _page("Nothing was measured", f"Of the {part}: {reason}.")
    rows = [("all (mIoU)", metrics["mIoU"], metrics["box_mIoU"], metrics["num_instances"])]
    plain = metrics["box_iou_per_category"]
    rows += [
        (name, category["iou"], plain.get(name), category["count"])
        for name, category in metrics["per_category"].items()
    ]
    return _page(
        f"mIoU {metrics['mIoU']:.4f}",
        _warning(usefulness_warning(metrics)),
        f"Measured on the {part}: {measured_objects(metrics)}.",
        markdown_table(
            ("masks of", "mean IoU"),
            [
                ("the model", metrics["mean_iou_instances"]),
                *(
                    (f"{BASELINES[name]}, no training", iou)
                    for name, iou in metrics["baselines"].items()
                    if iou is not None
                ),
            ],
        ),
        markdown_table(("objects", "IoU", "IoU of the plain boxes", "count"), rows),
    )


def _warning(text: str) -> str:
    return f"**Warning:** {text}" if text else ""


def facts_markdown(title: str, facts: Mapping[str, object]) -> str:
    """Tabulate facts by name."""
    shown = {name: value for name, value in facts.items() if len(str(value)) <= MAX_FACT_CHARS}
    return _page(title, markdown_table(("fact", "value"), shown.items()))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Tabulate; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join([f"## {title}", *filter(None, blocks)]) + "\n"
