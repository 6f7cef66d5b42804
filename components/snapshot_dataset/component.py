"""Record the data set of a run."""

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
    """Record URIs, counts and digests of a data set; the images are not copied.

    Args:
        dataset: The manifest: URIs, counts and sha256 of every part.
        summary: The manifest as a table.
        train_images: Folder or archive of the training images, local or s3://; '' with a root.
        train_annotations: COCO JSON with the training boxes, local or s3://; '' with a root.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        label_images: Images of the part to label; '' for the training part.
        label_annotations: Boxes of the part to label; '' for the training part.
        train_dataset: Root with images.tar.gz and annotations.json, in place of both; '' for none.
        eval_dataset: Root of the validation part with the same two files; '' for none.
        inference_dataset: Root of the part to label with the same two files; '' for none.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from mal.registry import snapshot
    from mal.steps import Step, metadata, summaries
    from mal.tao import snapshot_uris

    with Step(pipeline_name=pipeline_name) as step:
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
        step.log(manifest.summary)
        manifest.write(dataset.path)
        step.write_artifact(dataset, metadata.dataset_metadata(manifest))
        step.write_summary(summary, summaries.dataset_markdown(dataset.metadata), dataset=dataset)
