"""Find out whether it is time to train again."""

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
    """Compare a data set with the one of the last training; freeze its annotations to train on.

    Not to be cached: what lies behind a uri changes while the uri does not.

    Args:
        snapshot: What was found: digest, counts, frozen annotations, state of the store.
        metrics: Counts of boxes: all, new, changed, removed.
        summary: Whether to train, and why.
        changed: Whether to train.
        num_new: Boxes that the last training did not see.
        num_changed: Boxes that it saw otherwise.
        num_removed: Boxes that it saw and that are gone.
        frozen_train_annotations: A copy under the name of its content, to train on.
        frozen_val_annotations: Likewise; '' without a validation part.
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        store: Model store: a folder or s3:// that knows the last training.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        min_new_annotations: Boxes that must be new or changed; 0: any change of the data set.
        quiet_period_s: How long nothing of the data set must have been written, seconds.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from pathlib import Path

    from mal.registry.changes import detect_changes
    from mal.registry.model_store import ModelStore
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        found = detect_changes(
            ModelStore(store),
            train_images=train_images,
            train_annotations=train_annotations,
            val_images=val_images,
            val_annotations=val_annotations,
            min_new_annotations=min_new_annotations,
            quiet_period_s=quiet_period_s,
        )
        steps.tell(f"{'train' if found.is_changed else 'skip'}: {found.reason}")
        found.write(Path(snapshot.path))
        steps.describe(snapshot, lineage.detection_metadata(found, pipeline_name=pipeline_name))
        page = summaries.detection_markdown(found)
        steps.publish(metrics, found.counts, summary, page, snapshot=snapshot)
    return found.outputs
