"""`mal train`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    ESTIMATED_BOXES_FILE,
    EXPERIMENT_FILE,
    LATEST_CHECKPOINT,
    STATUS_FILE,
)
from mal.data.box_masks import NO_MASKS
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.data.size_prior import SizePrior
from mal.distributed.workers import Worker
from mal.evaluation.baselines import usefulness_warning
from mal.evaluation.metrics import rows_to_measure
from mal.jobs import places_of
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel
from mal.labeling.training_free import TrainingFreeModel
from mal.model.backbone import ViTBackbone
from mal.runtime import StopRequest, choose_device, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.estimation import with_estimated_boxes
from mal.stages.launch import on_every_device
from mal.stages.measure import measure_model, without_box_masks
from mal.stages.memory import (
    fallback_of,
    free_memory,
    is_out_of_memory,
    name_changes,
    name_training_shortage,
    smaller_training,
    training_shortage,
)
from mal.stages.point_training import FIRST_RUN_FOLDER, with_boxes_to_train_on
from mal.stages.results import TrainResult
from mal.stages.resume import Start, agree_on_start
from mal.stages.session import Session, recording
from mal.status import Status
from mal.training.callbacks import kpi_of
from mal.training.trainer import Measure, TrainingRun, train_network
from mal.training.wandb_logging import RUN_ID_FILE

log = logging.getLogger(__name__)

_RESTORED = (
    "*.pth",
    EPOCH_METRICS_FILE,
    ESTIMATED_BOXES_FILE,
    EXPERIMENT_FILE,
    RUN_ID_FILE,
    STATUS_FILE,
)


@on_every_device("train")
def run_train(spec: ExperimentSpec) -> TrainResult:
    """Train on the boxes of `dataset.train_*`; the same call again goes on where it was stopped.

    Started once on every node, it trains on all devices of all nodes.

    Raises:
        SpecError: A key is missing, or asks for what is not there.
        AnnotationError: A data set cannot be used.
        ArtifactError: Weights cannot be loaded.
        MemoryShortageError: It does not fit into memory, and the message says what would.
        WorkerError: One of several processes was lost.
    """
    dataset = spec.dataset
    inputs = {
        **places_of("train", spec),
        "train.pretrained_model_path": spec.train.pretrained_model_path,
    }
    with (
        handling_stop_signals() as stop,
        recording("train", spec, inputs, restored=_RESTORED) as session,
    ):
        reader = open_image_set(
            dataset.train_ann_path,
            dataset.train_img_dir,
            key="dataset.train",
            with_masks=spec.train.supervision == "mask",
        )
        device = choose_device(spec, spec.train.gpu_ids)
        metrics = _train_within_memory(reader, spec, device, stop, session)
        if session.is_first and (warning := usefulness_warning(metrics, "val_")):
            session.warn(warning)
        session.status.write(Status.RUNNING, "training finished", kpi=kpi_of(metrics))
    return TrainResult(
        results_dir=session.path,
        checkpoint=session.path / LATEST_CHECKPOINT,
        best_checkpoint=session.path / BEST_CHECKPOINT,
        metrics=metrics,
    )


def _train_within_memory(
    reader: ImageReader,
    spec: ExperimentSpec,
    device: torch.device,
    stop: StopRequest,
    session: Session,
) -> dict[str, float]:
    """Train; with `train.oom_fallback` again and again at the next smaller setting until it fits.

    Raises:
        MemoryShortageError: It does not fit.
    """
    has_shrunk = False
    while True:
        try:
            start = agree_on_start(spec, session.path, has_shrunk=has_shrunk)
            spec = start.spec
            return _train_once(reader, start, device, stop, session)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            spec = _shrink(spec, error, device, session)
        # Only now does nothing refer to the network any more: the error's frames did.
        free_memory()
        stop.raise_if_received()
        has_shrunk = True


def _train_once(
    reader: ImageReader, start: Start, device: torch.device, stop: StopRequest, session: Session
) -> dict[str, float]:
    run = TrainingRun(
        folder=session.path,
        device=device,
        seed=start.spec.train.seed,
        stop=stop,
        measure=_validation(start.spec, SizePrior.from_boxes(reader.boxes), stop, session),
        on_start=lambda: session.write_spec(start.spec),
        on_checkpoint=session.upload,
        warm_from=start.warm_from,
    )
    reader = with_boxes_to_train_on(reader, start, run)
    return train_network(reader, start.spec, run, start.resume_from)


def _shrink(
    spec: ExperimentSpec, error: Exception, device: torch.device, session: Session
) -> ExperimentSpec:
    """Return the spec of the next try; the curve of the last one ends.

    Raises:
        MemoryShortageError: There is none, or nobody asked for one.
    """
    # Of several ranks the others wait inside the step that did not fit into this one's memory.
    is_alone = Worker.current().num_ranks == 1
    smaller = fallback_of(spec) if spec.train.oom_fallback and is_alone else None
    checkpoint = ""
    if (session.path / LATEST_CHECKPOINT).exists():
        checkpoint = f"{session.results.uri.rstrip('/')}/{LATEST_CHECKPOINT}"
    if smaller is None or (checkpoint and smaller.model.arch != spec.model.arch):
        raise training_shortage(spec, error, device, checkpoint) from error
    message = (
        f"{name_training_shortage(spec, error, device)}: training again with "
        f"{name_changes(smaller_training(spec))} (train.oom_fallback)"
    )
    log.warning("%s", message)
    session.status.write(Status.RUNNING, message, verbosity="WARNING")
    (session.path / EPOCH_METRICS_FILE).unlink(missing_ok=True)
    shutil.rmtree(session.path / FIRST_RUN_FOLDER, ignore_errors=True)
    return smaller


def _validation(
    spec: ExperimentSpec, trained_prior: SizePrior, stop: StopRequest, session: Session
) -> Measure | None:
    """Return how to measure on the validation set, or None where it has no masks."""
    dataset = spec.dataset
    if not (dataset.val_ann_path and dataset.val_img_dir and dataset.load_mask):
        _say_unmeasured(session, "there is no validation set")
        return None
    reader = open_image_set(
        dataset.val_ann_path, dataset.val_img_dir, key="dataset.val", with_masks=True
    )
    reader, reason = without_box_masks(reader)
    if not reader.boxes.has_masks():
        _say_unmeasured(session, f"the validation set measures nothing: {reason or NO_MASKS}")
        return None
    prior = SizePrior.for_set(reader.boxes, trained_prior)
    reader = _sample_boxes(reader, spec)
    # A frozen backbone gives the same masks at every validation: they are measured once.
    training_free: dict[str, float] | None = None

    def measure(module: Any) -> Mapping[str, float]:
        ensemble = NetworkEnsemble(
            _networks_to_measure(module, spec),
            use_flip=spec.evaluate.use_flip_test,
            device=module.device,
            thresholds=spec.train.mask_thres,
        )

        def predict_unless_stopped(*inputs: Tensor) -> Tensor:
            stop.raise_if_received()
            return ensemble(*inputs)

        nonlocal training_free
        try:
            metrics = _measure(predict_unless_stopped, reader, prior, spec)
            if training_free is None:
                training_free = _measure_training_free(module, reader, prior, spec)
            return metrics | training_free
        finally:
            module.set_training_modes()

    return measure


def _measure_training_free(
    module: Any, reader: ImageReader, prior: SizePrior, spec: ExperimentSpec
) -> dict[str, float]:
    """Measure what a frozen backbone gives without training; {} where that is not asked for."""
    backbone = module.student.backbone
    is_asked = spec.evaluate.training_free and spec.model.freeze_backbone
    if not is_asked or not isinstance(backbone, ViTBackbone):
        return {}
    metrics = _measure(TrainingFreeModel(backbone, module.device), reader, prior, spec)
    return {"val_training_free_iou": metrics["val_mean_iou_instances"]} if metrics else {}


def _sample_boxes(reader: ImageReader, spec: ExperimentSpec) -> ImageReader:
    """Keep `train.max_val_boxes` boxes of those that count: always the same ones."""
    limits = spec.evaluate
    rows = rows_to_measure(
        reader.boxes, min_box_area=limits.min_box_area, min_box_side=limits.min_box_side
    )
    wanted = spec.train.max_val_boxes
    if not 0 < wanted < len(rows):
        return reader
    log.info("validation measures %d of %d boxes (train.max_val_boxes)", wanted, len(rows))
    chosen = np.random.default_rng(0).choice(rows, wanted, replace=False)
    return ImageReader(reader.boxes.select(np.sort(chosen)), reader.folder)


def _networks_to_measure(module: Any, spec: ExperimentSpec) -> list[Any]:
    if spec.evaluate.use_mixed_model_test:
        return [module.student, module.teacher]
    return [module.teacher if spec.evaluate.use_teacher_test else module.student]


def _measure(
    model: ProbabilityModel, reader: ImageReader, prior: SizePrior, spec: ExperimentSpec
) -> dict[str, float]:
    """Return the figures, without those that no box within the limits of `evaluate` gives."""
    settings = prediction_settings(spec, spec.evaluate, spec.dataset.crop_size)
    reader = with_estimated_boxes(model, reader, settings, prior)
    measured = measure_model(model, reader, settings, spec.evaluate, name="validate")
    figures = measured.measurement.metrics
    names = ("mIoU", "mean_iou_instances", "box_iou", "ellipse_iou")
    return {f"val_{name}": float(figures[name]) for name in names if figures[name] is not None}


def _say_unmeasured(session: Session, reason: str) -> None:
    session.warn(f"{reason}; {BEST_CHECKPOINT} is the latest checkpoint")
