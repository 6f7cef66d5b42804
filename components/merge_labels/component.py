"""Put the labels of all shards together."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def merge_labels(
    *,
    labels: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    annotations: str,
    shards: list[str],
    shard_labels: list[str],
    boxes_per_shard: int,
    pipeline_name: str = "mal",
) -> None:
    """Write the labels of a whole set: every annotation exactly once, in the order of its file.

    Args:
        labels: The annotation file with segmentation (RLE), area and score for every annotation.
        metrics: Counts of shards and boxes.
        summary: What was labelled with which model.
        annotations: The file that was split.
        shards: uris of split_boxes.
        shard_labels: uris of the labels, in the same order.
        boxes_per_shard: As it was split.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from pathlib import Path

    from mal.steps import label_job, summaries
    from mal.steps import metadata as lineage
    from mal.steps import step as steps

    with steps.running_step():
        num_boxes = label_job.merge_labels(
            annotations, shard_labels, boxes_per_shard=boxes_per_shard, output=Path(labels.path)
        )
        first = label_job.read_shard(shards[0])
        facts = lineage.merged_labels_metadata(
            labels.path,
            num_boxes,
            annotations_uri=annotations,
            shard=first,
            pipeline_name=pipeline_name,
        )
        steps.describe(labels, facts)
        counts = {"num_shards": float(len(shards)), "num_boxes": float(num_boxes)}
        page = summaries.facts_markdown("Labels", facts)
        steps.publish(metrics, counts, summary, page, labels=labels)
