"""Merge the labels of all shards."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def merge_labels(
    *,
    shards: dsl.Input[dsl.Artifact],
    labels: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    annotations: str,
    num_labelled: list[int],
    boxes_per_shard: int,
    pipeline_name: str = "mal",
) -> None:
    """Write the labels of a whole data set: every annotation once, in the order of its file.

    The step fails if more than half of the masks are empty, unless inference.allow_empty was set
    for split_boxes.

    Args:
        labels: The annotation file with segmentation (RLE), area and score for every annotation.
        metrics: Number of shards and boxes.
        summary: The labels, their boxes and their model.
        annotations: The file that was split.
        shards: Listing of split_boxes.
        num_labelled: Outputs num_boxes of label_shard, collected.
        boxes_per_shard: The value that split_boxes had.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from mal.steps import Step, label_shards
    from mal.steps.label_merge import merge_shards

    with Step(pipeline_name=pipeline_name) as step:
        parts = label_shards.read_listing(shards.path)
        step.log(f"{len(parts)} shards, {sum(map(int, num_labelled))} boxes labelled")
        merge_shards(
            step,
            parts,
            annotations,
            boxes_per_shard=boxes_per_shard,
            labels=labels,
            metrics=metrics,
            summary=summary,
        )
