"""Pin down the data set that a run learns from."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def snapshot_dataset(
    *,
    dataset: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
    train_images: str = "",
    train_annotations: str = "",
    val_images: str = "",
    val_annotations: str = "",
    label_images: str = "",
    label_annotations: str = "",
    train_dataset: str = "",
    eval_dataset: str = "",
    inference_dataset: str = "",
    pipeline_name: str = "mal",
) -> None:
    """Record where a data set is, what it holds and its digest; the images stay where they are.

    Args:
        dataset: The manifest: uris, counts and sha256 of every part.
        summary: The same, to read.
        train_images: Folder or archive of the training images, local or s3://; '' with a root.
        train_annotations: COCO JSON with the training boxes, local or s3://; '' with a root.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        label_images: Images of the part to label; '' for the training part.
        label_annotations: Boxes of the part to label; '' for the training part.
        train_dataset: Root with images.tar.gz and annotations.json, in place of both; '' for none.
        eval_dataset: Root of the validation part, likewise; '' for none.
        inference_dataset: Root of the part to label, likewise; '' for none.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from pathlib import Path

    from mal.registry import snapshot
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries
    from mal.tao import snapshot_uris

    with steps.running_step():
        uris = snapshot_uris(
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            inference_dataset=inference_dataset,
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            label_images=label_images,
            label_annotations=label_annotations,
        )
        manifest = snapshot.snapshot_dataset(**uris)
        steps.tell(manifest.summary)
        manifest.write(Path(dataset.path))
        steps.describe(dataset, lineage.dataset_metadata(manifest, pipeline_name=pipeline_name))
        page = summaries.facts_markdown("Data set", dataset.metadata)
        steps.write_summary(summary, page, dataset=dataset)
