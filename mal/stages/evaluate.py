"""`mal evaluate`."""

from __future__ import annotations

import dataclasses
import datetime
import logging

import torch

from mal import __version__
from mal.artifacts import METRICS_FILE, REPORT_FILE, sha256_of_file, write_json
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.data.size_prior import SizePrior
from mal.errors import SpecError
from mal.evaluation.baselines import compare_with_baselines, usefulness_warning
from mal.evaluation.report import write_report
from mal.labeling.load import LoadedModel, load_model, prediction_settings
from mal.labeling.masks import PredictedMasks
from mal.labeling.predictor import PredictionSettings
from mal.labeling.training_free import TrainingFreeModel
from mal.runtime import choose_device, handling_stop_signals
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import EvaluateSpec, ExperimentSpec
from mal.stages.estimation import with_estimated_boxes
from mal.stages.launch import distributed
from mal.stages.measure import measure_model, without_box_masks
from mal.stages.results import EvaluateResult
from mal.stages.session import recording
from mal.status import Status
from mal.tao import checkpoint_of, data_uris

log = logging.getLogger(__name__)


@distributed("evaluate")
def run_evaluate(spec: ExperimentSpec) -> EvaluateResult:
    """Measure a model on `dataset.val_*`; without true masks the report shows predictions only.

    Raises:
        SpecError: A key is missing.
        AnnotationError: The data set cannot be used.
        ArtifactError: The model cannot be loaded.
    """
    dataset = spec.dataset
    section = dataclasses.replace(spec.evaluate, checkpoint=checkpoint_of(spec.evaluate.checkpoint))
    inputs = {"evaluate.checkpoint": section.checkpoint, **data_uris("evaluate", spec)}
    with handling_stop_signals(), recording("evaluate", spec, inputs) as session:
        reader = open_image_set(
            dataset.val_ann_path,
            dataset.val_img_dir,
            key="dataset.val",
            with_masks=dataset.load_mask,
            annotation_type=dataset.type,
        )
        reader, reason = without_box_masks(reader)
        device = choose_device(spec, section.gpu_ids)
        loaded = load_model(section, spec, device)
        baseline = _training_free_model(loaded, device) if section.training_free else None
        settings = prediction_settings(loaded.spec, section, loaded.crop_size)
        prior = SizePrior.for_set(reader.boxes, loaded.size_prior)
        reader = with_estimated_boxes(loaded.model, reader, settings, prior)
        measured = measure_model(loaded.model, reader, settings, section, name="evaluate")
        metrics = measured.measurement.metrics
        if reason:
            metrics["reason_unmeasured"] = f"dataset.val_ann_path cannot be measured by: {reason}"
        if baseline is not None:
            metrics = metrics | _training_free_metrics(baseline, reader, settings, section)
            metrics |= compare_with_baselines(metrics)
        result = EvaluateResult(session.path, metrics, session.path / REPORT_FILE)
        if not session.is_rank0:
            return result
        write_json(session.path / METRICS_FILE, metrics)
        write_report(
            session.path / REPORT_FILE,
            title="Evaluation",
            metrics=metrics,
            boxes=reader.boxes,
            masks=PredictedMasks.held(measured.masks),
            ious=measured.measurement.instances,
            image_reader=reader,
            facts=report_facts(loaded, dataset.val_ann_path),
        )
        warnings = (reason, measured.measurement.warning, usefulness_warning(metrics))
        for warning in filter(None, warnings):
            session.warn(warning)
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        session.status.write(Status.RUNNING, "evaluation finished", kpi=numbers)
    return result


def _training_free_model(loaded: LoadedModel, device: torch.device) -> TrainingFreeModel:
    """Return the training-free model of the backbone's tokens, the baseline of a training.

    Raises:
        SpecError: The model has no ViT. Checked before the model is measured.
    """
    backbone = getattr(loaded.model, "backbone", None)
    if backbone is None or not backbone_entry(loaded.spec.model.arch).has_token_prior:
        raise SpecError(
            "evaluate.training_free must be false without the checkpoint of a ViT, got true for "
            f"{loaded.path.name}. Set evaluate.training_free=false."
        )
    return TrainingFreeModel(backbone, device)


def _training_free_metrics(
    model: TrainingFreeModel,
    reader: ImageReader,
    settings: PredictionSettings,
    section: EvaluateSpec,
) -> dict[str, float | None]:
    measured = measure_model(model, reader, settings, section, name="baseline")
    metrics = measured.measurement.metrics
    return {
        "training_free_mIoU": metrics["mIoU"],
        "training_free_iou": metrics["mean_iou_instances"],
    }


def report_facts(loaded: LoadedModel, annotation_uri: str) -> dict[str, str]:
    """Return the model and the data of a report, by title."""
    return {
        "Model": loaded.path.resolve().name,
        "Model sha256": sha256_of_file(loaded.path),
        "Network": f"{loaded.spec.model.arch}, crop {loaded.crop_size} px",
        "Annotations": annotation_uri,
        "Made": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "mal": __version__,
    }
