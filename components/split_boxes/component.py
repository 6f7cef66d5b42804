"""Cut a set into shards that a pod each can label."""

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
    """Write the shards of a set, with the model that labels them all; returns their uris.

    What an earlier run with the same inputs has written, and labelled, stays. Not to be cached.

    Args:
        images: Folder, archive or bucket folder.
        annotations: COCO JSON with the boxes to label.
        model: A model store, a job's results folder, the folder of its checkpoints, or one of them.
        work_dir: Folder or s3:// for shards and their labels.
        version: Of the model store; '' for its champion.
        boxes_per_shard: About how many boxes a shard has; an image is never cut.
        spec: As label_shard gets it.
        overrides: As label_shard gets them.
        Output: uri of every shard, in order.
    """
    import tempfile
    from pathlib import Path

    from mal.registry.model_fetch import fetch_model
    from mal.steps import label_job
    from mal.steps import step as steps

    with steps.running_step(), tempfile.TemporaryDirectory() as scratch:
        shards = label_job.split_job(
            annotations,
            images,
            work_dir=work_dir,
            model=fetch_model(model, Path(scratch), version=version),
            boxes_per_shard=boxes_per_shard,
            settings=[spec, *overrides],
        )
        steps.tell(f"{len(shards)} shards, {sum(shard.num_boxes for shard in shards)} boxes")
    return [shard.uri for shard in shards]
