"""Split a data set into shards that one pod each labels."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def split_boxes(
    *,
    images: str,
    annotations: str,
    model: str,
    work_dir: str,
    version: str = "",
    boxes_per_shard: int = 20000,
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> list[str]:
    """Write the shards of a data set, and the model that labels them; return their URIs.

    Shards and labels of an earlier run with the same inputs are kept. Do not cache this step.

    Args:
        images: Folder, archive or bucket folder.
        annotations: COCO JSON with the boxes to label.
        model: A model store, a results folder of a training, a folder of checkpoints, or one of
            them.
        work_dir: Folder or s3:// for the shards and their label files.
        version: Version of the model store; '' for the champion.
        boxes_per_shard: Approximate number of boxes in a shard; an image is never split.
        spec: The value that label_shard gets.
        overrides: The value that label_shard gets.
        Output: URI of every shard, in order.
    """
    import tempfile
    from pathlib import Path

    from mal.registry.model_fetch import fetch_model
    from mal.steps import Step
    from mal.steps.label_shards import split_data_set

    with Step() as step, tempfile.TemporaryDirectory() as scratch:
        shards = split_data_set(
            annotations,
            images,
            work_dir=work_dir,
            model=fetch_model(model, Path(scratch), version=version),
            boxes_per_shard=boxes_per_shard,
            settings=[spec, *overrides],
        )
        step.log(f"{len(shards)} shards, {sum(shard.num_boxes for shard in shards)} boxes")
    return [shard.uri for shard in shards]
