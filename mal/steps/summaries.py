"""The Markdown pages on which Kubeflow's UI shows the results of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mal.evaluation.baselines import BASELINES, best_baseline, usefulness_warning
from mal.evaluation.metrics_text import measured_objects, reason_unmeasured
from mal.markdown import escaped
from mal.registry.changes import Detection
from mal.registry.promotion import Outcome
from mal.registry.snapshot import DatasetManifest
from mal.steps.page import (
    DIGEST_SUFFIX,
    StepPage,
    digests_of,
    page_table,
    pictures_of_report,
)

MAX_VALUE_CHARS = 100

_UNSHOWN = frozenset({"display_name", "pipeline_name", "sha256", "git_sha", "image_digest"})


def detection_markdown(detection: Detection) -> str:
    """Report whether the data set changed enough to train again."""
    changes = detection.changes
    reason = escaped(f"{detection.reason[:1].upper()}{detection.reason[1:]}.")
    is_changed = detection.is_changed
    sources = {
        f"{name} {kind}": uri
        for name, part in detection.parts.items()
        for kind, uri in (("annotations", part.annotations_uri), ("images", part.images_uri))
    }
    return StepPage(
        "New annotations: training" if is_changed else "Nothing to train on: skipped",
        {
            "new": changes.num_new,
            "changed": changes.num_changed,
            "boxes": detection.train.num_boxes,
        },
        notice=reason,
        next_step="the steps below train and compare a model; the page of promote has the result."
        if is_changed
        else "nothing to do: the schedule looks again.",
        links=sources,
        tables=[
            page_table(
                ("boxes", "new", "changed", "removed"),
                [
                    (
                        detection.train.num_boxes,
                        changes.num_new,
                        changes.num_changed,
                        changes.num_removed,
                    )
                ],
            )
        ],
        digests={
            f"{name} annotations": p.annotations_sha256 for name, p in detection.parts.items()
        },
    ).markdown()


def outcome_markdown(outcome: Outcome) -> str:
    """Report the gate's decision, check by check."""
    checks = outcome.decision.checks
    rows = [
        (
            check.name,
            "" if check.champion is None else check.champion,
            "" if check.challenger is None else check.challenger,
            check.rule,
            "passed" if check.is_passed else "FAILED",
        )
        for check in checks
    ]
    measured = next((check for check in checks if check.name == "mIoU"), None)
    sides = {
        "challenger": measured and measured.challenger,
        "champion": measured and measured.champion,
    }
    numbers: dict[str, object] = {f"mIoU of the {k}": v for k, v in sides.items() if v is not None}
    numbers["checks passed"] = f"{sum(check.is_passed for check in checks)} of {len(checks)}"
    if outcome.decision.is_passed:
        next_step = "label with the new champion: the pipeline label-only takes the model store."
    else:
        next_step = (
            "look at the failed checks below and at the report of evaluate-challenger. To use it "
            "nevertheless: `mal pipelines promote --store STORE --to VERSION`."
        )
    return StepPage(
        f"{'Promoted' if outcome.decision.is_passed else 'Refused'}: {outcome.version}",
        numbers,
        notice="\n\n".join(
            filter(None, map(escaped, (f"{outcome.sentence}.", outcome.registry_error)))
        ),
        next_step=next_step,
        tables=[page_table(("check", "champion", "challenger", "rule", ""), rows)],
    ).markdown()


def evaluation_markdown(
    data: DatasetManifest, metrics: Mapping[str, Any], report: Path | None = None
) -> str:
    """Show mIoU beside the best masks without training, and the IoU of every category.

    Args:
        data: The manifest that was measured on.
        metrics: Content of `metrics.json`.
        report: The HTML report, whose pictures the page shows.
    """
    part = data.evaluated_part
    pictures = pictures_of_report(report) if report else ""
    if metrics.get("mIoU") is None:
        return StepPage(
            "Nothing was measured",
            notice=escaped(f"Of the {part}: {reason_unmeasured(metrics)}."),
            pictures=pictures,
            next_step="give a validation part with true masks to measure the model.",
        ).markdown()
    best = best_baseline(metrics["baselines"])
    warning = usefulness_warning(metrics)
    numbers = {"mIoU": metrics["mIoU"], "mean IoU of objects": metrics["mean_iou_instances"]}
    if best:
        numbers[f"{best[0]}, no training"] = best[1]
    return StepPage(
        f"mIoU {metrics['mIoU']:.4f}",
        numbers,
        notice=f"**Warning:** {escaped(warning)}" if warning else "",
        pictures=pictures,
        next_step="do not label with this model yet."
        if warning
        else "label with the model, or look at its worst masks in the artifact report.",
        tables=[
            escaped(f"Measured on the {part}: {measured_objects(metrics)}."),
            *_iou_tables(metrics),
        ],
    ).markdown()


def _iou_tables(metrics: Mapping[str, Any]) -> Iterable[str]:
    baselines = [
        (f"{BASELINES[name]}, no training", iou)
        for name, iou in metrics["baselines"].items()
        if iou is not None
    ]
    model = ("the model", metrics["mean_iou_instances"])
    yield page_table(("masks of", "mean IoU"), [model, *baselines])
    plain = metrics["box_iou_per_category"]
    rows = [("all (mIoU)", metrics["mIoU"], metrics["box_mIoU"], metrics["num_instances"])]
    rows += [
        (name, category["iou"], plain.get(name), category["count"])
        for name, category in metrics["per_category"].items()
    ]
    yield page_table(("objects", "IoU", "IoU of the plain boxes", "count"), rows)


def dataset_markdown(metadata: Mapping[str, Any]) -> str:
    """Show the sizes of a data set."""
    parts = {
        "train": "boxes to learn from",
        "val": "boxes to measure on",
        "label": "boxes to label",
    }
    numbers = {text: metadata.get(f"{part}_num_boxes") for part, text in parts.items()}
    return _artifact_page(
        metadata, numbers, "nothing to do: the steps below read the data from these URIs."
    )


def model_markdown(metadata: Mapping[str, Any]) -> str:
    """Show how well a model learned."""
    numbers = {
        "validation mIoU": metadata.get("val_mIoU"),
        "training loss": metadata.get("train_loss"),
        "seconds": metadata.get("train_time_s"),
    }
    return _artifact_page(metadata, numbers, "read the page of evaluate: it measures the model.")


def labels_markdown(metadata: Mapping[str, Any], report: Path | None = None) -> str:
    """Show how many boxes got a mask, why the others did not, and some of the masks."""
    num_boxes = float(metadata.get("num_instances", 0))
    num_empty = float(metadata.get("num_empty", 0))
    is_mostly_empty = num_empty > num_boxes / 2
    return _artifact_page(
        metadata,
        {"boxes": num_boxes, "masks": metadata.get("num_masks"), "empty": num_empty or None},
        "fix the boxes or images: more than half of the masks are empty."
        if is_mostly_empty
        else "look at some of the masks, then use the labels: they are COCO JSON.",
        pictures_of_report(report) if report else "",
        notice=escaped(f"{metadata['masks']}.") if num_empty and "masks" in metadata else "",
    )


def onnx_markdown(metadata: Mapping[str, Any]) -> str:
    """Show what was exported, and its largest difference from PyTorch."""
    numbers = {
        "difference from PyTorch": metadata.get("parity_max_abs_diff"),
        "input": metadata.get("input_shape"),
        "opset": metadata.get("opset"),
    }
    return _artifact_page(metadata, numbers, "serve the folder, or load it with `mal.Predictor`.")


def _artifact_page(
    metadata: Mapping[str, Any],
    numbers: Mapping[str, object],
    next_step: str,
    pictures: str = "",
    notice: str = "",
) -> str:
    """Show the metadata of an artifact; long values are left to its metadata in the UI."""
    links = {
        name.removesuffix("_uri"): str(uri)
        for name, uri in metadata.items()
        if name.endswith("_uri")
    }
    rest = [
        (name, value)
        for name, value in metadata.items()
        if name not in _UNSHOWN
        and not name.endswith(("_uri", DIGEST_SUFFIX))
        and len(str(value)) <= MAX_VALUE_CHARS
    ]
    return StepPage(
        str(metadata.get("display_name") or "Result"),
        {name: value for name, value in numbers.items() if value is not None},
        notice=notice,
        pictures=pictures,
        next_step=next_step,
        links=links,
        tables=[page_table(("key", "value"), rest)] if rest else [],
        digests=digests_of(metadata),
    ).markdown()
