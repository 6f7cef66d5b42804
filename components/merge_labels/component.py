"""Merge the labels of all shards."""

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
    """Write the labels of a whole data set: every annotation once, in the order of its file.

    Args:
        labels: The annotation file with segmentation (RLE), area and score for every annotation.
        metrics: Number of shards and boxes.
        summary: The labels, their boxes and their model.
        annotations: The file that was split.
        shards: URIs of split_boxes.
        shard_labels: URIs of the shards' label files, in the same order.
        boxes_per_shard: The value that split_boxes had.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from mal.steps import Step, label_shards, metadata, summaries

    with Step(pipeline_name=pipeline_name) as step:
        num_boxes = label_shards.merge_labels(
            annotations, shard_labels, boxes_per_shard=boxes_per_shard, output=labels.path
        )
        shard = label_shards.read_shard(shards[0])
        described = metadata.merged_labels_metadata(
            labels.path, num_boxes, annotations_uri=annotations, shard=shard
        )
        step.write_artifact(labels, described)
        step.log_metrics(metrics, {"num_shards": len(shards), "num_boxes": num_boxes})
        step.write_summary(summary, summaries.labels_markdown(labels.metadata), labels=labels)
