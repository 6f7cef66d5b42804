"""Masks for a large set of boxes: split, label the shards in parallel, merge."""

from typing import NamedTuple

from kfp import dsl

from mal.kfp.components.label_shard import label_shard
from mal.kfp.components.merge_labels import merge_labels
from mal.kfp.components.split_boxes import split_boxes
from mal.steps.label_shards import MAX_PARALLEL_BATCHES

from .._step_setup import prepare

PIPELINE_NAME = "label-only"


class LabelOnlyOutputs(NamedTuple):
    """The outputs of a run."""

    labels: dsl.Artifact
    summary: dsl.Markdown


@dsl.pipeline(name=PIPELINE_NAME)
def label_only(  # noqa: PLR0917 - kfp calls it by position
    images: str,
    annotations: str,
    model: str,
    work_dir: str,
    version: str = "",
    boxes_per_shard: int = 20000,
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> LabelOnlyOutputs:
    """Label a set of boxes with a trained model, shard by shard; the same run again resumes.

    Memory and disk of a labelling pod depend on boxes_per_shard if images is a bucket folder;
    every pod fetches the whole of an archive. The steps that split and merge have the annotations
    and labels of the whole set on disk.

    Args:
        images: Folder, archive or bucket folder; a bucket folder is fetched shard by shard.
        annotations: COCO JSON with the boxes to label.
        model: A model store, the results folder of a training, the folder of its checkpoints, or a
            checkpoint.
        work_dir: Folder or s3:// for shards and their labels.
        version: Version of the model store; '' for its champion.
        boxes_per_shard: Approximate number of boxes per pod; an image is never divided.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    shards = split_boxes(
        images=images,
        annotations=annotations,
        model=model,
        work_dir=work_dir,
        version=version,
        boxes_per_shard=boxes_per_shard,
        spec=spec,
        overrides=overrides,
        pipeline_name=PIPELINE_NAME,
    )
    batches = shards.outputs["Output"]
    with dsl.ParallelFor(batches, parallelism=MAX_PARALLEL_BATCHES) as shard:
        labelled = label_shard(
            shard=shard, spec=spec, overrides=overrides, pipeline_name=PIPELINE_NAME
        )
    merged = merge_labels(
        annotations=annotations,
        shards=shards.outputs["shards"],
        num_labelled=dsl.Collected(labelled.outputs["num_boxes"]),
        boxes_per_shard=boxes_per_shard,
        pipeline_name=PIPELINE_NAME,
    )
    # Not cached: shards check themselves whether they are done, and the data at a URI may change.
    for step in (shards, labelled, merged):
        prepare(step, is_cached=False)
    return LabelOnlyOutputs(labels=merged.outputs["labels"], summary=merged.outputs["summary"])
