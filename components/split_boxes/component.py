"""Split a data set into shards that one pod each labels."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def split_boxes(
    *,
    shards: dsl.Output[dsl.Artifact],
    images: str,
    annotations: str,
    model: str,
    work_dir: str,
    version: str = "",
    boxes_per_shard: int = 20000,
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    pipeline_name: str = "mal",
) -> list[str]:
    """Write the shards of a data set, and the model that labels them; return them in batches.

    Shards and labels of an earlier run with the same inputs are kept. Do not cache this step.

    Args:
        shards: Listing of the shards' URIs, for merge_labels.
        images: Folder, archive or bucket folder.
        annotations: COCO JSON with the boxes to label.
        model: A model store, a results folder of a training, a folder of checkpoints, or one of
            them.
        work_dir: Folder or s3:// for the shards and their label files.
        version: Version of the model store; '' for the champion.
        boxes_per_shard: Approximate number of boxes in a shard; an image is never split.
        spec: The value that label_shard gets.
        overrides: The value that label_shard gets.
        pipeline_name: Name that the artifacts of this run are grouped under.
        Output: An item for each pod that labels, in order: a shard, or several shards.
    """
    import tempfile
    from pathlib import Path

    from mal.registry.model_fetch import fetch_model
    from mal.steps import Step, label_shards, specs

    with Step(pipeline_name=pipeline_name) as step, tempfile.TemporaryDirectory() as scratch:
        parts = label_shards.split_data_set(
            annotations,
            images,
            work_dir=work_dir,
            model=fetch_model(model, Path(scratch), version=version),
            boxes_per_shard=boxes_per_shard,
            settings=[spec, *overrides],
            allow_empty=specs.allows_empty(spec, overrides),
        )
        batches = label_shards.batches_of(parts)
        num_boxes = sum(part.num_boxes for part in parts)
        step.log(f"{len(parts)} shards, {num_boxes} boxes, in {len(batches)} batches")
        label_shards.write_listing(parts, shards.path)
        step.write_artifact(shards, {"display_name": f"{len(parts)} shards, {num_boxes} boxes"})
    return batches
