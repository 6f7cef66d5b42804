"""Boxes in, masks out: snapshot, train (or search first), evaluate, inference, export."""

from kfp import dsl

from mal.kfp.components.tune import tune

from .._step_setup import prepare
from .._steps import LabelOutputs, take_snapshot, use_model

PIPELINE_NAME = "auto-label"


@dsl.pipeline(name=PIPELINE_NAME)
def auto_label(  # noqa: PLR0917 - kfp calls it by position
    train_images: str,
    train_annotations: str,
    val_images: str = "",
    val_annotations: str = "",
    label_images: str = "",
    label_annotations: str = "",
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    automl_policy: str = "auto",
) -> LabelOutputs:
    """Learn masks from boxes, measure them, label a set with them and export the model.

    Args:
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        label_images: Images of the part to label; '' for the training part.
        label_annotations: Boxes of the part to label; '' for the training part.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        automl_policy: auto searches train.lr and train.wd first where the validation part has
            masks, which costs at most five trainings; on insists on it; off trains plainly.
    """
    dataset = take_snapshot(
        train_images=train_images,
        train_annotations=train_annotations,
        val_images=val_images,
        val_annotations=val_annotations,
        label_images=label_images,
        label_annotations=label_annotations,
        pipeline_name=PIPELINE_NAME,
    )
    settings = {"spec": spec, "overrides": overrides, "dataset": dataset}
    # One step for both routes: kfp.local cannot choose between the artifacts of two.
    trained = prepare(tune(automl_policy=automl_policy, **settings))
    return use_model(trained.outputs["model"], settings)
