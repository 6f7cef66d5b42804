"""Lightning callbacks: checkpoints, validation, records, progress, stopping."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    LATEST_CHECKPOINT,
    checkpoint_name,
    point_at,
    writing_atomically,
)
from mal.distributed.group import broadcast_buffers
from mal.errors import StorageError
from mal.model.checkpoint import SPEC_KEY
from mal.runtime import Interrupted, StopRequest
from mal.spec import spec_as_dict
from mal.spec.experiment import ExperimentSpec
from mal.status import MONITORED_METRIC, Status, StatusLog
from mal.training.loss_terms import diverged

log = logging.getLogger(__name__)

POSITION_KEY = "mal_position"
INTERIM_KEY = "is_interim"
BEST_KEY = "best_figure"  # since 0.1.0: renaming it would break older checkpoints
VALIDATION_METRIC = "val_mIoU"
RECORD_KEYS = ("epoch", "step", "lr", "epoch_time_s")


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes directly to the file; Lightning's own makes a copy in memory and one in /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: The disk is full, or cannot be written.
        """
        try:
            torch.save(checkpoint, path)
        except (OSError, RuntimeError) as error:
            folder = Path(path).parent
            reason = str(error).partition("\n")[0][:120]
            raise StorageError(
                f"Cannot write the checkpoint to {folder}: {reason}. Free disk space there, or set "
                "another results_dir, and run again: it resumes from the last checkpoint."
            ) from error


class Checkpoints(Callback):
    """Writes checkpoints atomically, and points `latest` and `best` at them.

    A checkpoint that is written only because time has passed is an interim one: the next checkpoint
    replaces it.

    Attributes:
        interim: Name of the interim checkpoint that exists; '' for none.
    """

    def __init__(
        self,
        folder: Path,
        spec: ExperimentSpec,
        stop: StopRequest,
        on_written: Callable[[], None],
        num_steps: int,
        *,
        facts: Mapping[str, Any] | None = None,
        on_superseded: Callable[[Path], None] = lambda _: None,
        save_interval_s: float = math.inf,
    ) -> None:
        self.on_superseded = on_superseded
        self.save_interval_s = save_interval_s
        self.interim = ""
        self.status = StatusLog(folder)
        self._saved_s = time.monotonic()
        self._is_interim = False
        self.facts = dict(facts or {})
        self.folder = folder
        self.spec = spec
        self.stop = stop
        self.on_written = on_written
        self.num_steps = num_steps
        self.best_metric = -math.inf
        self._fit_loop_state: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, _module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a reader of the file needs: the spec, the position in the run, the best metric.

        Lightning counts the epoch in which the run's steps end as finished; a run that is prolonged
        later continues inside that epoch.
        """
        is_epoch_over = is_whole_epoch(trainer)
        if not is_epoch_over and self._fit_loop_state:
            checkpoint["loops"]["fit_loop"] = self._fit_loop_state
        checkpoint[SPEC_KEY] = spec_as_dict(self.spec)
        checkpoint.update(self.facts)
        checkpoint[POSITION_KEY] = {
            BEST_KEY: self.best_metric,
            "epoch": trainer.current_epoch + is_epoch_over,
            "batch": 0 if is_epoch_over else num_batches_done(trainer),
            **({INTERIM_KEY: True} if self._is_interim else {}),
        }

    def on_train_start(self, *_: Any) -> None:
        """Take signals back from Lightning.

        Lightning's handler ends a run with exit code 0 if the signal arrives between two batches,
        and broadcasts, which ranks without a signal would read as another message.
        """
        self.stop.take_signals()
        self._saved_s = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        """Write by steps, and before a requested stop; the last batch is left to the epoch's end.

        The run's steps are counted here: if Lightning counted them, it would treat every resumed
        run as one stopped inside an epoch.
        """
        if trainer.global_step >= self.num_steps:
            trainer.should_stop = True
            self._fit_loop_state = trainer.fit_loop.state_dict()
        if batch_idx + 1 >= trainer.num_training_batches or trainer.should_stop:
            return
        if (batch_idx + 1) % self.spec.train.accum_grad_batches:
            return
        must_stop, is_time = self.stop.agree_with(is_due=self._is_time())
        if must_stop or self._is_due(trainer, "step", trainer.global_step):
            self._write(trainer)
        elif is_time:
            self._write_interim(trainer)
        if must_stop:
            self.stop.raise_if_received()

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write by epochs or steps, for a new best, at the end of the run and before a stop."""
        train = self.spec.train
        metric = trainer.callback_metrics.get(VALIDATION_METRIC)
        is_validated = is_validated_epoch(trainer, train.validation_interval)
        is_best = is_validated and metric is not None and float(metric) > self.best_metric
        if is_best:
            assert metric is not None
            self.best_metric = float(metric)
        is_last = is_last_epoch(trainer)
        must_stop, is_time = self.stop.agree_with(is_due=self._is_time())
        if (
            must_stop
            or is_last
            or is_best
            or self._is_due(trainer, "epoch", trainer.current_epoch + 1)
            or self._is_due(trainer, "step", trainer.global_step)
        ):
            path = self._write(trainer, is_best=is_best)
            is_unmeasured = self.best_metric == -math.inf
            has_best = (self.folder / BEST_CHECKPOINT).exists()
            if trainer.is_global_zero and is_last and (is_unmeasured or not has_best):
                point_at(self.folder / BEST_CHECKPOINT, path)
                self.on_written()
        elif is_time:
            self._write_interim(trainer)
        if must_stop:  # a signal since then would stop this rank alone
            self.stop.raise_if_received()

    def _is_due(self, trainer: Trainer, unit: str, count: int) -> bool:
        train = self.spec.train
        return train.checkpoint_interval_unit == unit and count % train.checkpoint_interval == 0

    def _is_time(self) -> bool:
        return time.monotonic() - self._saved_s >= self.save_interval_s

    def _write_interim(self, trainer: Trainer) -> None:
        """Write a checkpoint that the next one replaces, and the position to `status.json`."""
        if trainer.is_global_zero:
            self.status.write(Status.RUNNING, f"step {trainer.global_step}/{self.num_steps}")
        self._is_interim = True
        try:
            self._write(trainer)
        finally:
            self._is_interim = False

    def _write(self, trainer: Trainer, *, is_best: bool = False) -> Path:
        num_epochs = trainer.current_epoch + is_whole_epoch(trainer)
        path = self.folder / checkpoint_name(num_epochs, trainer.global_step)
        self._saved_s = time.monotonic()
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # all ranks must call it; rank 0 writes
            return path
        with writing_atomically(path) as temporary:
            trainer.save_checkpoint(temporary)
        # The best first: a run killed between the two repeats the epoch and finds the best again.
        if is_best:
            point_at(self.folder / BEST_CHECKPOINT, path)
        point_at(self.folder / LATEST_CHECKPOINT, path)
        if self.interim not in ("", path.name):
            self.on_superseded(self.folder / self.interim)
        self.interim = path.name if self._is_interim else ""
        self.on_written()
        return path


def num_batches_done(trainer: Trainer) -> int:
    """Return how many batches of the current epoch are trained, the current one included."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def is_whole_epoch(trainer: Trainer) -> bool:
    """Whether the last batch of the current epoch is trained."""
    return num_batches_done(trainer) >= trainer.num_training_batches


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the run ends with the current epoch."""
    return trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs


def is_validated_epoch(trainer: Trainer, interval: int) -> bool:
    """Whether the current epoch is followed by a validation."""
    return (trainer.current_epoch + 1) % interval == 0 or is_last_epoch(trainer)


class Validation(Callback):
    """Measures the networks on the validation set with the code of `mal evaluate`."""

    def __init__(
        self,
        measure: Callable[[LightningModule], Mapping[str, float]],
        interval: int,
    ) -> None:
        self.measure = measure
        self.interval = interval

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure when it is due; runs before `Checkpoints`.

        A stop request ends the measurement; the epoch is then saved without metrics. Lightning
        keeps those of an earlier epoch; they are removed.
        """
        for name in [name for name in trainer.callback_metrics if name.startswith("val_")]:
            del trainer.callback_metrics[name]
        if is_validated_epoch(trainer, self.interval):
            broadcast_buffers(module)
            with contextlib.suppress(Interrupted):
                module.log_dict(dict(self.measure(module)), logger=True)


class EpochRecords(Callback):
    """Writes a line per epoch to `metrics.jsonl` and `status.json`."""

    def __init__(self, folder: Path, status: StatusLog, num_steps: int) -> None:
        self.path = folder / EPOCH_METRICS_FILE
        self.status = status
        self.num_steps = num_steps
        self.last = _last_metrics(self.path)
        self._epoch_started_s = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the clock: a run resumed inside an epoch gets no `on_train_epoch_start`."""
        self._epoch_started_s = time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._epoch_started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write the epoch's metrics."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.last = metrics
        line = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **metrics,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch_time_s": round(time.monotonic() - self._epoch_started_s, 3),
        }
        _require_finite(metrics)
        append_record(self.path, line)
        if VALIDATION_METRIC in metrics:  # the format that Katib's collector reads
            metric = metrics[VALIDATION_METRIC]
            log.info("epoch %d: %s=%.4f", line["epoch"], MONITORED_METRIC, metric)
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.status.write(
            Status.RUNNING,
            f"epoch {line['epoch']}, step {trainer.global_step}/{self.num_steps}: {text}",
            kpi=kpi_of(metrics),
        )


def kpi_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics for `status.json`, with the validation metric also under TAO's name."""
    if VALIDATION_METRIC not in metrics:
        return dict(metrics)
    return {**metrics, MONITORED_METRIC: metrics[VALIDATION_METRIC]}


def _require_finite(metrics: Mapping[str, float]) -> None:
    """Stop a run whose metrics are not finite.

    Raises:
        MalError: One is NaN or infinite.
    """
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise diverged(broken[0], metrics[broken[0]])


def _last_metrics(path: Path) -> dict[str, float]:
    """Return the metrics of the last line, for a run that is finished already."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    record: dict[str, float] = json.loads(next((s for s in reversed(lines) if s.strip()), "{}"))
    return {name: value for name, value in record.items() if name not in RECORD_KEYS}


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON line; an epoch that a resumed run repeats replaces its earlier line."""
    kept = []
    if path.exists():
        kept = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() and json.loads(line)["step"] < record["step"]
        ]
    with writing_atomically(path) as temporary:
        temporary.write_text("\n".join([*kept, json.dumps(record)]) + "\n", encoding="utf-8")


class TrainingProgress(Callback):
    """A progress bar on a terminal, periodic lines in a log."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Start counting at the step that the run resumes from."""
        from mal.progress import Progress

        self.progress = Progress("train", self.num_steps, unit="steps", done=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count."""
        self.progress.update_to(trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self.progress.close()

    def on_exception(self, *_: Any) -> None:
        """Close the bar."""
        if hasattr(self, "progress"):
            self.progress.close()
