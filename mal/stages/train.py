"""`mal train`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mal.artifacts import BEST_CHECKPOINT, LATEST_CHECKPOINT
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.errors import SpecError
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble
from mal.runtime import choose_device, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.measure import measure_model
from mal.stages.results import TrainResult
from mal.stages.session import Session, recording
from mal.status import Status
from mal.storage import fetch_file
from mal.training.trainer import TrainingRun, train_network

log = logging.getLogger(__name__)

_RESTORED = ("*.pth", "metrics.jsonl", "status.json")


def run_train(spec: ExperimentSpec) -> TrainResult:
    """Train on the boxes of `dataset.train_*`; the same call again goes on where it was stopped.

    Raises:
        SpecError: A key is missing, or asks for what is not there.
        AnnotationError: A data set cannot be used.
        ArtifactError: Weights cannot be loaded.
    """
    _refuse_several_devices(spec)
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
        run = TrainingRun(
            folder=session.path,
            device=device,
            seed=spec.train.seed if spec.train.seed >= 0 else secrets.randbits(31),
            stop=stop,
            measure=_validation(spec, device, session),
            on_checkpoint=lambda: _upload(session),
        )
        metrics = train_network(reader, spec, run, _resume_checkpoint(spec, session.path))
        session.status.write(Status.RUNNING, "training finished", kpi=metrics)
    return TrainResult(
        results_dir=session.path,
        checkpoint=session.path / LATEST_CHECKPOINT,
        best_checkpoint=session.path / BEST_CHECKPOINT,
        metrics=metrics,
    )


def _validation(spec: ExperimentSpec, device: Any, session: Session) -> Any:
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

    def measure(module: Any) -> Mapping[str, float]:
        networks = _networks_to_measure(module, spec)
        ensemble = NetworkEnsemble(
            networks, use_flip=spec.evaluate.use_flip_test, device=module.device
        )
        figures = _measure(ensemble, reader, spec)
        module.on_train_epoch_start()
        return figures

    return measure


def _networks_to_measure(module: Any, spec: ExperimentSpec) -> list[Any]:
    if spec.evaluate.use_mixed_model_test:
        return [module.student, module.teacher]
    return [module.teacher if spec.evaluate.use_teacher_test else module.student]


def _measure(
    ensemble: NetworkEnsemble, reader: ImageReader, spec: ExperimentSpec
) -> dict[str, float]:
    settings = prediction_settings(spec, spec.evaluate, spec.dataset.crop_size)
    measured = measure_model(ensemble, reader, settings, spec.evaluate, name="validate")
    figures = measured.measurement.metrics
    return {
        "val_mIoU": float(figures["mIoU"]),
        "val_mean_iou_instances": float(figures["mean_iou_instances"]),
        "val_box_iou": float(figures["box_iou"]),
    }


def _say_unmeasured(session: Session, reason: str) -> None:
    session.status.write(
        Status.RUNNING, f"{reason}: {BEST_CHECKPOINT} is the latest", verbosity="WARNING"
    )
    log.info("%s: %s will be the latest checkpoint", reason, BEST_CHECKPOINT)


def _resume_checkpoint(spec: ExperimentSpec, folder: Path) -> Path | None:
    """Return the checkpoint to go on from: the given one, or the latest of this folder."""
    given = spec.train.resume_training_checkpoint_path
    if given:
        return fetch_file(given)
    latest = folder / LATEST_CHECKPOINT
    if latest.exists():
        log.info("going on from %s", latest.resolve().name)
        return latest
    return None


def _upload(session: Session) -> None:
    session.results.upload()


def _refuse_several_devices(spec: ExperimentSpec) -> None:
    if spec.train.num_gpus * spec.train.num_nodes > 1:
        raise SpecError(
            f"train.num_gpus and train.num_nodes must be 1 in this version, got "
            f"{spec.train.num_gpus} and {spec.train.num_nodes}. Set both to 1."
        )
