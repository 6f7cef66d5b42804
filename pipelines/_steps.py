"""The steps that pipelines share, before and after the training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from mal.kfp.components.evaluate import evaluate
from mal.kfp.components.export import export
from mal.kfp.components.inference import inference
from mal.kfp.components.snapshot_dataset import snapshot_dataset

from ._step_setup import prepare


class LabelOutputs(NamedTuple):
    """The outputs of a pipeline that trains and labels."""

    dataset: dsl.Dataset
    model: dsl.Model
    metrics: dsl.Metrics
    report: dsl.HTML
    labels: dsl.Artifact
    onnx: dsl.Model


def take_snapshot(**parameters: Any) -> Any:
    """Add the step that pins the data; returns its data set.

    It is not cached: the data at a URI may change while the URI stays the same.
    """
    return prepare(snapshot_dataset(**parameters), is_cached=False).outputs["dataset"]


def use_model(model: Any, settings: Mapping[str, Any]) -> LabelOutputs:
    """Add the steps that evaluate a trained model, label with it and export it.

    Args:
        model: Output of the training step.
        settings: dataset, spec and overrides of that step.
    """
    evaluated = prepare(evaluate(model=model, **settings))
    labelled = prepare(inference(model=model, **settings))
    exported = prepare(export(model=model, **settings), uses_gpus=False)
    return LabelOutputs(
        dataset=settings["dataset"],
        model=model,
        metrics=evaluated.outputs["metrics"],
        report=evaluated.outputs["report"],
        labels=labelled.outputs["labels"],
        onnx=exported.outputs["onnx"],
    )
