"""Boxes in, masks out: snapshot, train, evaluate, inference, export."""

from typing import NamedTuple

from kfp import dsl

from components.evaluate import evaluate
from components.export import export
from components.inference import inference
from components.snapshot_dataset import snapshot_dataset
from components.train import train

PIPELINE_NAME = "auto-label"


class AutoLabelOutputs(NamedTuple):
    """What a run leaves."""

    dataset: dsl.Dataset
    model: dsl.Model
    metrics: dsl.Metrics
    report: dsl.HTML
    labels: dsl.Artifact
    onnx: dsl.Model


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
) -> AutoLabelOutputs:
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
    """
    snapshot = snapshot_dataset(
        train_images=train_images,
        train_annotations=train_annotations,
        val_images=val_images,
        val_annotations=val_annotations,
        label_images=label_images,
        label_annotations=label_annotations,
        pipeline_name=PIPELINE_NAME,
    )
    # What lies behind a uri may change while the uri does not: look at every run.
    snapshot.set_caching_options(False)
    settings = {"spec": spec, "overrides": overrides, "dataset": snapshot.outputs["dataset"]}
    trained = train(**settings)
    model = trained.outputs["model"]
    evaluated = evaluate(model=model, **settings)
    labelled = inference(model=model, **settings)
    exported = export(model=model, **settings)
    for step in (trained, evaluated, labelled, exported):
        step.set_caching_options(True)
    return AutoLabelOutputs(
        dataset=snapshot.outputs["dataset"],
        model=model,
        metrics=evaluated.outputs["metrics"],
        report=evaluated.outputs["report"],
        labels=labelled.outputs["labels"],
        onnx=exported.outputs["onnx"],
    )
