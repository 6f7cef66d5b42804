"""Merge the labels of all shards, and judge them together."""

from __future__ import annotations

from collections.abc import Sequence

from mal.labeling.label_counts import LabelCounter, LabelCounts
from mal.steps import label_shards, summaries
from mal.steps.metadata import StepArtifact, merged_labels_metadata
from mal.steps.step import MetricsArtifact, Step


def merge_shards(
    step: Step,
    parts: Sequence[str],
    annotations: str,
    *,
    boxes_per_shard: int,
    labels: StepArtifact,
    metrics: MetricsArtifact,
    summary: StepArtifact,
) -> LabelCounts:
    """Write the label file of a whole set, its metrics and its page.

    Args:
        step: Writes the outputs.
        parts: URIs of the shards.
        annotations: The file that was split.
        boxes_per_shard: The value that split_boxes had.
        labels: Gets the label file.
        metrics: Gets the numbers.
        summary: Gets the page.

    Raises:
        MostlyEmptyError: More than half of the masks are empty, and the run does not allow it. The
            labels of the shards stay where they are.
        MalError: The labels cannot be merged.
    """
    counter = LabelCounter()
    shard = label_shards.read_shard(parts[0])
    label_shards.merge_labels(
        annotations,
        label_shards.label_files_of(parts),
        boxes_per_shard=boxes_per_shard,
        output=labels.path,
        images_uri=shard.images_uri,
        counter=counter,
    )
    counts = counter.counts()
    step.log(counts.line())
    described = merged_labels_metadata(
        labels.path, counts, annotations_uri=annotations, shard=shard
    )
    step.write_artifact(labels, described)
    step.log_metrics(metrics, {"num_shards": len(parts), **counts.metrics()})
    step.write_summary(summary, summaries.labels_markdown(labels.metadata), labels=labels)
    problem = counts.problem(f"{len(parts)} shards, the first of them {parts[0]}")
    if problem is not None and not shard.allow_empty:
        raise problem
    return counts
