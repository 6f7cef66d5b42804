"""Builds data, network and Lightning's trainer from a spec, and runs the training."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import Tensor

from mal.artifacts import LATEST_CHECKPOINT, checkpoint_name
from mal.data.annotations import CocoBoxes
from mal.data.crop_dataset import (
    ImageReader,
    TrainingCrops,
    select_training_boxes,
)
from mal.data.datamodule import training_loader
from mal.data.sampler import EpochSampler
from mal.data.size_prior import SizePrior
from mal.distributed.group import broadcast_buffers, broadcast_from_rank0, gather_values
from mal.distributed.workers import Worker
from mal.errors import SpecError, WorkerError
from mal.model.checkpoint import (
    SIZE_PRIOR_KEY,
    load_network_weights,
    load_pretrained_weights,
    read_checkpoint,
)
from mal.model.network import MALNetwork
from mal.model.precision import chosen_precision
from mal.runtime import StopRequest, node_devices
from mal.spec.experiment import ExperimentSpec
from mal.status import StatusLog
from mal.training.callbacks import (
    BEST_KEY,
    INTERIM_KEY,
    POSITION_KEY,
    VALIDATION_METRIC,
    Checkpoints,
    EpochRecords,
    PlainCheckpointIO,
    TrainingProgress,
    Validation,
)
from mal.training.compilation import require_compiler
from mal.training.feature_cache import CachedCrops, cached_crop_features
from mal.training.module import MALModule
from mal.training.optimizer import use_deterministic_math
from mal.training.step_profile import FEATURES, StepProfile
from mal.training.strategy import device_arguments
from mal.training.wandb_logging import wandb_loggers

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

Measure = Callable[[LightningModule], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingRun:
    """What a run needs in addition to its spec.

    Attributes:
        folder: Result folder, local.
        measure: Returns the metrics on the validation set; None without one.
        on_start: Called before the first step; never, if nothing is left to train.
        on_checkpoint: Called after a checkpoint was written.
        on_superseded: Removes a checkpoint that was saved by time only.
        save_interval_s: A checkpoint is saved at least this often; infinite for never.
        warm_from: A checkpoint whose student to start from, before any pretrained weights.
    """

    folder: Path
    device: torch.device
    seed: int
    stop: StopRequest
    measure: Measure | None
    on_start: Callable[[], None]
    on_checkpoint: Callable[[], None]
    on_superseded: Callable[[Path], None] = lambda _: None
    save_interval_s: float = math.inf
    warm_from: Path | None = None


def train_network(
    reader: ImageReader, spec: ExperimentSpec, run: TrainingRun, resume_from: Path | None
) -> dict[str, float]:
    """Train and write checkpoints; returns the metrics of the last epoch.

    Raises:
        AnnotationError: No box can be trained on.
        ArtifactError: Weights cannot be loaded.
        SpecError: There is no compiler, or the cached features exceed their limit.
    """
    started_s = time.monotonic()
    torch.manual_seed(run.seed)
    use_deterministic_math(spec.train)
    if spec.train.compile:
        require_compiler(run.device)
    checkpoint = read_checkpoint(resume_from) if resume_from else None
    student = build_student(spec, checkpoint, run.warm_from)
    rows = select_training_boxes(reader, spec)
    profiler = StepProfile(run.folder, run.device) if spec.train.profile else PassThroughProfiler()
    drawn = TrainingCrops(reader, rows, spec, run.seed)
    with _training_crops(drawn, run, student, profiler) as crops:
        log.info("training on %d crops of %d boxes", len(crops), len(rows))
        metrics = _fit(
            student, crops, spec, run, facts=_facts_of(reader.boxes),
            resume_from=resume_from, checkpoint=checkpoint, profiler=profiler,
        )  # fmt: skip
    return {**metrics, "train_time_s": round(time.monotonic() - started_s, 3)}


def _fit(
    student: MALNetwork,
    crops: TrainingCrops | CachedCrops,
    spec: ExperimentSpec,
    run: TrainingRun,
    *,
    facts: Mapping[str, Any],
    resume_from: Path | None,
    checkpoint: Mapping[str, Any] | None,
    profiler: Profiler,
) -> dict[str, float]:
    """Fit the student to the crops; returns the metrics of the last epoch, steps and epochs."""
    worker = Worker.current()
    sampler = EpochSampler(len(crops), seed=run.seed, rank=worker.rank, num_ranks=worker.num_ranks)
    loader = training_loader(crops, sampler, spec)
    steps_per_epoch = -(-len(loader) // spec.train.accum_grad_batches)
    num_steps = spec.train.max_steps or spec.train.num_epochs * steps_per_epoch
    log.info(
        "%d steps of %d, %.1f M of %.1f M weights, on %s",
        num_steps, spec.train.batch_size * spec.train.accum_grad_batches * worker.num_ranks,
        _millions(p for p in student.parameters() if p.requires_grad),
        _millions(student.parameters()), _name_devices(run.device, worker.num_ranks),
    )  # fmt: skip
    module = MALModule(
        student, spec, seed=run.seed, steps_per_epoch=steps_per_epoch, num_steps=num_steps,
        profiler=profiler,
    )  # fmt: skip
    checkpoints = Checkpoints(
        run.folder, spec, run.stop, run.on_checkpoint, num_steps, facts=facts,
        on_superseded=run.on_superseded, save_interval_s=run.save_interval_s,
    )  # fmt: skip
    if checkpoint is not None:
        _restore_position(checkpoint, sampler, checkpoints, spec)
        checkpoints.interim = _interim_name(checkpoint, run.folder)
    max_epochs = _max_epochs(checkpoint, spec, num_steps, run.folder)
    records = EpochRecords(run.folder, StatusLog(run.folder), num_steps)
    callbacks = [
        LambdaCallback(on_train_start=lambda *_: run.on_start()),
        *_validation(spec, run), records, checkpoints, TrainingProgress(num_steps),
    ]  # fmt: skip
    with wandb_loggers(spec, run.folder, is_resumed=resume_from is not None) as loggers:
        trainer = _build_trainer(spec, run, callbacks, loggers, profiler, max_epochs=max_epochs)
        with run.stop.deferring():
            trainer.fit(module, loader, ckpt_path=resume_from, weights_only=True)
    broadcast_buffers(module)
    _require_same_weights(module, worker)
    metrics = broadcast_from_rank0(records.last)
    if run.measure and resume_from and VALIDATION_METRIC not in metrics:
        metrics |= run.measure(module)
    return {
        **metrics,
        "num_steps": float(trainer.global_step),
        "num_epochs": float(trainer.fit_loop.epoch_progress.current.ready),
    }


def _facts_of(boxes: CocoBoxes) -> dict[str, Any]:
    """Return what a checkpoint stores about its training set."""
    return {SIZE_PRIOR_KEY: SizePrior.from_boxes(boxes).to_json()}


def build_student(
    spec: ExperimentSpec, checkpoint: Mapping[str, Any] | None, warm_from: Path | None
) -> MALNetwork:
    """Build the student with the weights it goes on from, or starts from.

    They are loaded before fitting: the features of a frozen backbone are computed before.
    """
    student = MALNetwork(spec.model, spec.dataset.crop_size)
    if checkpoint is not None:
        load_network_weights(student, checkpoint, "student")
    elif warm_from or spec.train.pretrained_model_path:
        load_pretrained_weights(student, str(warm_from or spec.train.pretrained_model_path))
    elif spec.model.freeze_backbone:
        log.warning(
            "model.freeze_backbone without train.pretrained_model_path: the frozen backbone is "
            "random and the masks will be poor. Give weights."
        )
    return student


def _validation(spec: ExperimentSpec, run: TrainingRun) -> list[Validation]:
    return [Validation(run.measure, spec.train.validation_interval)] if run.measure else []


@contextlib.contextmanager
def _training_crops(
    crops: TrainingCrops, run: TrainingRun, student: MALNetwork, profiler: Profiler
) -> Iterator[TrainingCrops | CachedCrops]:
    """Yield the crops, with their features where the spec wants these cached."""
    num_cached = crops.spec.train.cached_crops
    if not num_cached:
        yield crops
        return
    with contextlib.ExitStack() as in_use:
        with profiler.profile(FEATURES):
            cached = in_use.enter_context(
                cached_crop_features(student, crops, num_cached, run.device)
            )
        yield cached


def _restore_position(
    checkpoint: Mapping[str, Any],
    sampler: EpochSampler,
    checkpoints: Checkpoints,
    spec: ExperimentSpec,
) -> None:
    """Continue at the epoch and batch of the checkpoint."""
    position = checkpoint.get(POSITION_KEY)
    if not isinstance(position, Mapping):
        raise SpecError(
            "train.resume_training_checkpoint_path must be a checkpoint of mal train, got a "
            "foreign one. Give it as train.pretrained_model_path to start from its weights."
        )
    sampler.set_epoch(int(position["epoch"]))
    sampler.num_skipped = int(position["batch"]) * spec.train.batch_size
    checkpoints.best_metric = float(position[BEST_KEY])


def _interim_name(checkpoint: Mapping[str, Any], folder: Path) -> str:
    """Return the name of the checkpoint if it is an interim one of this folder, else ''."""
    position = checkpoint[POSITION_KEY]
    name = checkpoint_name(int(position["epoch"]), int(checkpoint["global_step"]))
    return name if position.get(INTERIM_KEY) and (folder / name).exists() else ""


def _max_epochs(
    checkpoint: Mapping[str, Any] | None, spec: ExperimentSpec, num_steps: int, folder: Path
) -> int:
    """Return after how many epochs Lightning ends, -1 where steps alone end the run.

    Raises:
        SpecError: Nothing is left to train, and the folder has no model.
    """
    max_epochs = -1 if spec.train.max_steps else spec.train.num_epochs
    if checkpoint is None:
        return max_epochs
    steps_done, epochs_done = checkpoint["global_step"], checkpoint[POSITION_KEY]["epoch"]
    if steps_done < num_steps and (max_epochs == -1 or epochs_done < max_epochs):
        return max_epochs
    if Worker.current().is_rank0 and not (folder / LATEST_CHECKPOINT).exists():
        raise SpecError(
            "train.resume_training_checkpoint_path must have steps left to train, got "
            f"{steps_done} done of {num_steps}. Raise train.max_steps or train.num_epochs, or use "
            "it as it is."
        )
    log.info(
        "nothing is left to train: %d steps, %d whole epochs, are done. For more raise "
        "train.max_steps or train.num_epochs; for a new run set another train.results_dir.",
        steps_done, epochs_done,
    )  # fmt: skip
    return int(checkpoint["epoch"])  # Lightning refuses a smaller one


def _build_trainer(
    spec: ExperimentSpec,
    run: TrainingRun,
    callbacks: list[Any],
    loggers: Sequence[Logger],
    profiler: Profiler,
    *,
    max_epochs: int,
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    train = spec.train
    worker = Worker.current()
    precision = chosen_precision(train.precision, use_amp=train.use_amp, device=run.device)
    return Trainer(
        **device_arguments(worker, node_devices(spec, train.gpu_ids)),
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        max_epochs=max_epochs,
        accumulate_grad_batches=train.accum_grad_batches,
        gradient_clip_val=train.clip_grad_norm or None,
        callbacks=callbacks,
        profiler=profiler,
        logger=[TensorBoardLogger(run.folder, name="lightning_logs", version=""), *loggers],
        plugins=[PlainCheckpointIO()],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic="warn" if train.cudnn.deterministic else False,
        log_every_n_steps=10,
    )


def _require_same_weights(module: MALModule, worker: Worker) -> None:
    """Check that all ranks have trained the same networks.

    Raises:
        WorkerError: They have not; then the checkpoint is only the first rank's.
    """
    if worker.num_ranks == 1:
        return
    digest = hashlib.sha256()
    for weights in module.state_dict().values():
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    digests = gather_values(digest.hexdigest())
    different = [rank for rank, found in enumerate(digests) if found != digests[0]]
    if different:
        raise WorkerError(
            f"weights must be the same on all {worker.num_ranks} ranks, got others on ranks "
            f"{different}. Use the same version of mal and torch on all nodes, and "
            "train.cudnn.deterministic=true."
        )
    log.info("all %d ranks have the same weights, sha256 %s", worker.num_ranks, digests[0][:12])


def _name_devices(device: torch.device, num_ranks: int) -> str:
    return f"{device}" if num_ranks == 1 else f"{num_ranks} x {device.type}"


def _millions(parameters: Iterable[Tensor]) -> float:
    return sum(parameter.numel() for parameter in parameters) / 1e6
