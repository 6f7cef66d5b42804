"""`mal train`."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    FIRST_RUN_FOLDER,
    LATEST_CHECKPOINT,
)
from mal.data.box_masks import NO_MASKS
from mal.data.crop_dataset import ImageReader, TrainingCrops, select_training_boxes
from mal.data.datamodule import open_image_set
from mal.data.size_prior import SizePrior
from mal.distributed.workers import Worker
from mal.evaluation.baselines import usefulness_warning
from mal.evaluation.metrics import rows_to_measure
from mal.labeling.box_estimation import rows_without_box
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel
from mal.labeling.training_free import TrainingFreeModel
from mal.model.checkpoint import read_checkpoint
from mal.runtime import StopRequest, choose_device, handling_stop_signals
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import ExperimentSpec
from mal.stages.claim import Claim, claim_folder
from mal.stages.estimation import with_estimated_boxes
from mal.stages.launch import distributed
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
from mal.stages.point_training import with_boxes_to_train_on
from mal.stages.results import TrainResult
from mal.stages.resume import ResumePlan, broadcast_resume_plan
from mal.stages.session import Session, recording
from mal.stages.training_identity import identity_of_training
from mal.stages.written_files import RESTORED, results_uri
from mal.status import Status
from mal.storage import describe_inputs, fetch_file
from mal.storage.uris import parse_remote_uri
from mal.tao import data_uris
from mal.training.callbacks import kpi_of
from mal.training.compilation import require_compiler
from mal.training.trainer import Measure, TrainingRun, build_student, train_network

log = logging.getLogger(__name__)


@distributed("train")
def run_train(spec: ExperimentSpec) -> TrainResult:
    """Train on the boxes of `dataset.train_*`; the same call again resumes a stopped training.

    Run it once on every node; it trains on all devices of all nodes.

    Raises:
        SpecError: A key is missing, or needs what this machine does not have.
        AnnotationError: A data set cannot be used.
        ArtifactError: Weights cannot be loaded.
        MemoryShortageError: The training does not fit into memory; names the settings that may.
        WorkerError: One of several processes was lost.
    """
    dataset = spec.dataset
    inputs = {
        **data_uris("train", spec),
        "train.pretrained_model_path": spec.train.pretrained_model_path,
    }
    with (
        handling_stop_signals() as stop,
        recording("train", spec, inputs, restored=RESTORED["train"]) as session,
    ):
        reader = open_image_set(
            dataset.train_ann_path,
            dataset.train_img_dir,
            key="dataset.train",
            with_masks=spec.train.supervision == "mask",
            annotation_type=spec.dataset.type,
        )
        validation = _open_validation_set(spec, session)
        device = choose_device(spec, spec.train.gpu_ids)
        data = _Data(reader, validation)
        claim = _claim(data, spec, device, session, inputs) if session.is_rank0 else None
        training = _Training(data, claim, device, stop, session)
        metrics = training.run_within_memory(claim.spec if claim else spec)
        if session.is_rank0 and (warning := usefulness_warning(metrics, "val_")):
            session.warn(warning)
        session.status.write(Status.RUNNING, "training finished", kpi=kpi_of(metrics))
    return TrainResult(
        results_dir=session.path,
        checkpoint=session.path / LATEST_CHECKPOINT,
        best_checkpoint=session.path / BEST_CHECKPOINT,
        metrics=metrics,
    )


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a training reads; without masks to measure with there is no validation set."""

    training: ImageReader
    validation: ImageReader | None


def _claim(
    data: _Data,
    spec: ExperimentSpec,
    device: torch.device,
    session: Session,
    inputs: Mapping[str, str],
) -> Claim:
    """Claim the results folder for this training.

    Raises:
        SpecError: The folder belongs to another run.
    """
    weights = spec.train.pretrained_model_path
    if not session.has_model and parse_remote_uri(weights) is not None:
        fetch_file(weights)  # its digest is part of the run's identity
    described = describe_inputs(inputs)
    asked = identity_of_training(spec, data.training, data.validation, described)
    return claim_folder(
        session, spec, asked, described, lambda: _require_startable(data.training, spec, device)
    )


def _require_startable(reader: ImageReader, spec: ExperimentSpec, device: torch.device) -> None:
    """Raise the errors of a training's start before an earlier run's results are removed.

    Raises:
        AnnotationError: No box can be trained on.
        ArtifactError: Weights cannot be loaded.
        SpecError: There is no compiler for `train.compile`.
    """
    if spec.train.compile:
        require_compiler(device)
    if not len(rows_without_box(reader.boxes)):
        crops = TrainingCrops(reader, select_training_boxes(reader, spec), spec, seed=0)
        crops[0, 0]  # an unreadable image is replaced by the next readable one
    given = spec.train.resume_training_checkpoint_path
    checkpoint = read_checkpoint(fetch_file(given)) if given else None
    build_student(spec, checkpoint, warm_from=None)


@dataclasses.dataclass(frozen=True)
class _Training:
    """A training in its own results folder; `claim` is None on ranks that do not write."""

    data: _Data
    claim: Claim | None
    device: torch.device
    stop: StopRequest
    session: Session

    def run_within_memory(self, spec: ExperimentSpec) -> dict[str, float]:
        """Train; with `train.oom_fallback` retry with smaller settings until it fits.

        Raises:
            MemoryShortageError: It does not fit.
        """
        after_oom_fallback = False
        while True:
            try:
                start = broadcast_resume_plan(
                    spec, self.session.path, after_oom_fallback=after_oom_fallback
                )
                spec = start.spec
                return self._run_once(start)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                spec = _smaller_spec(spec, error, self.device, self.session)
            # Only after the except block, whose error's frames refer to the network.
            free_memory()
            self.stop.raise_if_received()
            after_oom_fallback = True

    def _run_once(self, start: ResumePlan) -> dict[str, float]:
        prior = SizePrior.from_boxes(self.data.training.boxes)
        run = TrainingRun(
            folder=self.session.path,
            device=self.device,
            seed=start.spec.train.seed,
            stop=self.stop,
            measure=_validation(self.data.validation, start.spec, prior, self.stop),
            on_start=lambda: self._record_start(start.spec),
            on_checkpoint=self.session.upload_soon,
            on_superseded=self.session.results.retire,
            save_interval_s=_save_interval_s(start.spec),
            warm_from=start.warm_from,
        )
        reader = with_boxes_to_train_on(self.data.training, start, run)
        return train_network(reader, start.spec, run, start.resume_from)

    def _record_start(self, spec: ExperimentSpec) -> None:
        """Write the spec in use and, on the rank that writes, `run.json`."""
        self.session.write_spec(spec)
        if self.claim is not None:
            self.session.run = self.claim.started(spec)
            self.session.run.write(self.session.path)


def _save_interval_s(spec: ExperimentSpec) -> float:
    """Return how often a checkpoint is saved by time; infinite for a local results folder.

    The same on all ranks, of which only rank 0 has the remote folder.
    """
    is_remote = parse_remote_uri(results_uri("train", spec)) is not None
    return float(spec.storage.upload_interval_s) if is_remote else math.inf


def _smaller_spec(
    spec: ExperimentSpec, error: Exception, device: torch.device, session: Session
) -> ExperimentSpec:
    """Return the spec of the next attempt, and remove the metrics of the last one.

    Raises:
        MemoryShortageError: There is no smaller setting, or `train.oom_fallback` is off.
    """
    # Other ranks would wait for ever inside the step that failed on this rank.
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


def _open_validation_set(spec: ExperimentSpec, session: Session) -> ImageReader | None:
    """Return the validation set, or None if it has no masks to measure with."""
    dataset = spec.dataset
    if not (dataset.val_ann_path and dataset.val_img_dir and dataset.load_mask):
        _warn_unmeasured(session, "there is no validation set")
        return None
    reader = open_image_set(
        dataset.val_ann_path,
        dataset.val_img_dir,
        key="dataset.val",
        with_masks=True,
        annotation_type=dataset.type,
    )
    reader, reason = without_box_masks(reader)
    if not reader.boxes.has_masks():
        _warn_unmeasured(session, f"the validation set cannot be measured: {reason or NO_MASKS}")
        return None
    return reader


def _validation(
    reader: ImageReader | None, spec: ExperimentSpec, trained_prior: SizePrior, stop: StopRequest
) -> Measure | None:
    """Return the function that measures a module on the validation set; None without a set."""
    if reader is None:
        return None
    prior = SizePrior.for_set(reader.boxes, trained_prior)
    sampled = _sample_boxes(reader, spec)
    # A frozen backbone predicts the same masks at every validation: measured once.
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
            metrics = _measure(predict_unless_stopped, sampled, prior, spec)
            if training_free is None:
                training_free = _measure_training_free(module, sampled, prior, spec)
            return metrics | training_free
        finally:
            module.set_training_modes()

    return measure


def _measure_training_free(
    module: Any, reader: ImageReader, prior: SizePrior, spec: ExperimentSpec
) -> dict[str, float]:
    """Measure the training-free masks of a frozen backbone; {} if that is not requested."""
    backbone = module.student.backbone
    is_requested = spec.evaluate.training_free and spec.model.freeze_backbone
    if not is_requested or not backbone_entry(spec.model.arch).has_token_prior:
        return {}
    metrics = _measure(TrainingFreeModel(backbone, module.device), reader, prior, spec)
    return {"val_training_free_iou": metrics["val_mean_iou_instances"]} if metrics else {}


def _sample_boxes(reader: ImageReader, spec: ExperimentSpec) -> ImageReader:
    """Keep `train.max_val_boxes` of the measured boxes, always the same ones."""
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
    """Return the metrics that are defined by the boxes within the limits of `evaluate`."""
    settings = prediction_settings(spec, spec.evaluate, spec.dataset.crop_size)
    reader = with_estimated_boxes(model, reader, settings, prior)
    measured = measure_model(model, reader, settings, spec.evaluate, name="validate")
    metrics = measured.measurement.metrics
    names = ("mIoU", "mean_iou_instances", "box_iou", "ellipse_iou")
    return {f"val_{name}": float(metrics[name]) for name in names if metrics[name] is not None}


def _warn_unmeasured(session: Session, reason: str) -> None:
    session.warn(f"{reason}; {BEST_CHECKPOINT} is the latest checkpoint")
