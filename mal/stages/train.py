"""`mal train`."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mal.artifacts import BEST_CHECKPOINT, LATEST_CHECKPOINT
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.evaluation.metrics import rows_to_measure
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel
from mal.model.checkpoint import SPEC_KEY, read_checkpoint
from mal.runtime import StopRequest, choose_device, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.measure import measure_model
from mal.stages.results import TrainResult
from mal.stages.session import Session, recording
from mal.status import Status
from mal.storage import fetch_file
from mal.training.trainer import Measure, TrainingRun, train_network

log = logging.getLogger(__name__)

_RESTORED = ("*.pth", "metrics.jsonl", "status.json")


def run_train(spec: ExperimentSpec) -> TrainResult:
    """Train on the boxes of `dataset.train_*`; the same call again goes on where it was stopped.

    Raises:
        SpecError: A key is missing, or asks for what is not there.
        AnnotationError: A data set cannot be used.
        ArtifactError: Weights cannot be loaded.
    """
    dataset = spec.dataset
    inputs = {
        "dataset.train_ann_path": dataset.train_ann_path,
        "dataset.train_img_dir": dataset.train_img_dir,
        "dataset.val_ann_path": dataset.val_ann_path,
        "dataset.val_img_dir": dataset.val_img_dir,
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
        resume_from = _resume_checkpoint(spec, session.path)
        spec = _with_drawn_seed(spec, resume_from)
        session.write_spec(spec)
        run = TrainingRun(
            folder=session.path,
            device=device,
            seed=spec.train.seed,
            stop=stop,
            measure=_validation(spec, stop, session),
            on_checkpoint=session.upload,
        )
        metrics = train_network(reader, spec, run, resume_from)
        session.status.write(Status.RUNNING, "training finished", kpi=metrics)
    return TrainResult(
        results_dir=session.path,
        checkpoint=session.path / LATEST_CHECKPOINT,
        best_checkpoint=session.path / BEST_CHECKPOINT,
        metrics=metrics,
    )


def _with_drawn_seed(spec: ExperimentSpec, resume_from: Path | None) -> ExperimentSpec:
    """Return the spec with a seed in place of -1: the resumed run's own, or a new one."""
    if spec.train.seed >= 0:
        return spec
    seed = secrets.randbits(31)
    if resume_from is not None:
        saved = read_checkpoint(resume_from).get(SPEC_KEY)
        if isinstance(saved, Mapping):
            seed = int(saved["train"]["seed"])
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, seed=seed))


def _validation(spec: ExperimentSpec, stop: StopRequest, session: Session) -> Measure | None:
    """Return how to measure on the validation set, or None where it has no masks."""
    dataset = spec.dataset
    if not (dataset.val_ann_path and dataset.val_img_dir and dataset.load_mask):
        _say_unmeasured(session, "there is no validation set")
        return None
    reader = open_image_set(
        dataset.val_ann_path, dataset.val_img_dir, key="dataset.val", with_masks=True
    )
    if not reader.boxes.has_masks():
        _say_unmeasured(session, "the validation set has no masks")
        return None
    reader = _sample_boxes(reader, spec)

    def measure(module: Any) -> Mapping[str, float]:
        ensemble = NetworkEnsemble(
            _networks_to_measure(module, spec),
            use_flip=spec.evaluate.use_flip_test,
            device=module.device,
        )

        def predict_unless_stopped(*inputs: Tensor) -> Tensor:
            stop.raise_if_received()
            return ensemble(*inputs)

        try:
            return _measure(predict_unless_stopped, reader, spec)
        finally:
            module.set_training_modes()

    return measure


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
    model: ProbabilityModel, reader: ImageReader, spec: ExperimentSpec
) -> dict[str, float]:
    """Return the figures, without those that no box within the limits of `evaluate` gives."""
    settings = prediction_settings(spec, spec.evaluate, spec.dataset.crop_size)
    measured = measure_model(model, reader, settings, spec.evaluate, name="validate")
    figures = measured.measurement.metrics
    names = ("mIoU", "mean_iou_instances", "box_iou")
    return {f"val_{name}": float(figures[name]) for name in names if figures[name] is not None}


def _say_unmeasured(session: Session, reason: str) -> None:
    session.status.write(
        Status.RUNNING, f"{reason}: {BEST_CHECKPOINT} is the latest", verbosity="WARNING"
    )
    log.info("%s: %s will be the latest checkpoint", reason, BEST_CHECKPOINT)


def _resume_checkpoint(spec: ExperimentSpec, folder: Path) -> Path | None:
    """Return the checkpoint to go on from: the latest of this folder, or the given one.

    A restarted run finds its own checkpoints and goes on from them, not from where it once began;
    a given checkpoint of this very folder is a wish to go back.
    """
    given = spec.train.resume_training_checkpoint_path
    latest = folder / LATEST_CHECKPOINT
    is_going_back = bool(given) and Path(given).resolve().parent == folder.resolve()
    if latest.exists() and not is_going_back:
        log.info("going on from %s", latest.resolve().name)
        return latest
    return fetch_file(given) if given else None
