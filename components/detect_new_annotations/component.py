"""Detect whether a data set has changed since the last training."""

from typing import NamedTuple

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def detect_new_annotations(
    *,
    snapshot: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    train_images: str,
    train_annotations: str,
    store: str,
    val_images: str = "",
    val_annotations: str = "",
    min_new_annotations: int = 1,
    quiet_period_s: float = 0.0,
    pipeline_name: str = "mal",
) -> NamedTuple(  # type: ignore[valid-type]
    "Outputs",
    [
        ("changed", bool),
        ("num_new", int),
        ("num_changed", int),
        ("num_removed", int),
        ("frozen_train_annotations", str),
        ("frozen_val_annotations", str),
    ],
):
    """Compare a data set with that of the last training, and copy its annotations to train on.

    Do not cache this step: the content behind a URI changes while the URI stays the same.

    Args:
        snapshot: Digest, counts, copied annotations and the state of the model store.
        metrics: Number of boxes: all, new, changed, removed.
        summary: The decision, and its reason.
        changed: True: train.
        num_new: Boxes that the last training did not have.
        num_changed: Boxes that the last training had with other content.
        num_removed: Boxes of the last training that are gone.
        frozen_train_annotations: URI of a copy named by its sha256, to train on.
        frozen_val_annotations: URI of the copy; '' without a validation part.
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        store: Model store, a folder or s3://; it records the last training.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        min_new_annotations: Boxes that must be new or changed; 0: any change starts a training.
        quiet_period_s: Seconds since the last write to the data set before it is used.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from mal.registry.changes import detect_changes
    from mal.registry.model_store import ModelStore
    from mal.steps import Step, metadata, summaries

    with Step(pipeline_name=pipeline_name) as step:
        detection = detect_changes(
            ModelStore(store),
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            min_new_annotations=min_new_annotations,
            quiet_period_s=quiet_period_s,
        )
        step.log(f"{'train' if detection.is_changed else 'skip'}: {detection.reason}")
        detection.write(snapshot.path)
        step.write_artifact(snapshot, metadata.detection_metadata(detection))
        step.log_metrics(metrics, detection.counts)
        step.write_summary(summary, summaries.detection_markdown(detection), snapshot=snapshot)
    return detection.outputs
