"""What happens around the training steps: checkpoints, validation, records, progress, stopping."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    LATEST_CHECKPOINT,
    checkpoint_name,
    writing_atomically,
)
from mal.model.checkpoint import SPEC_KEY
from mal.runtime import StopRequest
from mal.spec import spec_as_dict
from mal.spec.experiment import ExperimentSpec
from mal.status import Status, StatusLog

log = logging.getLogger(__name__)

POSITION_KEY = "mal_position"
VALIDATION_FIGURE = "val_mIoU"


class Checkpoints(Callback):
    """Writes checkpoints, whole or not at all, and points `latest` and `best` at them.

    """

    def __init__(
        self,
        folder: Path,
        spec: ExperimentSpec,
        stop: StopRequest,
        on_written: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.stop = stop
        self.on_written = on_written
        self.best_figure = -math.inf

    def on_save_checkpoint(
        self, trainer: Trainer, _module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a reader of the file needs: the spec, the place in the run, the best figure."""
        checkpoint[SPEC_KEY] = spec_as_dict(self.spec)
        checkpoint[POSITION_KEY] = {"best_figure": self.best_figure, **self._position(trainer)}

    def _position(self, trainer: Trainer) -> dict[str, int]:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        num_batches = int(trainer.num_training_batches)
        epoch, batch = trainer.current_epoch, progress.processed
        if batch >= num_batches:
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch}

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        """Write by steps, and before a requested stop."""
        train = self.spec.train
        is_step_done = (batch_idx + 1) % train.accum_grad_batches == 0
        is_due = (
            train.checkpoint_interval_unit == "step"
            and is_step_done
            and trainer.global_step % train.checkpoint_interval == 0
        )
        must_stop = self.stop.received is not None and is_step_done
        if is_due or must_stop:
            self._write(trainer)
        if must_stop:
            self.stop.raise_if_received()

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write by epochs, and at the end of the run; remember the best."""
        train = self.spec.train
        is_last = is_last_epoch(trainer)
        is_due = (
            train.checkpoint_interval_unit == "epoch"
            and (trainer.current_epoch + 1) % train.checkpoint_interval == 0
        )
        figure = trainer.callback_metrics.get(VALIDATION_FIGURE)
        is_validated = is_validated_epoch(trainer, train.validation_interval)
        is_best = is_validated and figure is not None and float(figure) > self.best_figure
        if is_best:
            assert figure is not None
            self.best_figure = float(figure)
        if is_due or is_last or is_best:
            path = self._write(trainer)
            if is_best:
                point_at(self.folder / BEST_CHECKPOINT, path)
        if is_last and not (self.folder / BEST_CHECKPOINT).exists():
            point_at(self.folder / BEST_CHECKPOINT, path)

    def _write(self, trainer: Trainer) -> Path:
        position = self._position(trainer)
        path = self.folder / checkpoint_name(position["epoch"], trainer.global_step)
        with writing_atomically(path) as temporary:
            trainer.save_checkpoint(temporary)
        point_at(self.folder / LATEST_CHECKPOINT, path)
        self.on_written()
        return path


def point_at(link: Path, target: Path) -> None:
    """Make `link` a relative symlink to a file of the same folder, atomically."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def is_last_epoch(trainer: Trainer) -> bool:
    """Whether the run ends with the current epoch."""
    if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
        return True
    return trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs


def is_validated_epoch(trainer: Trainer, interval: int) -> bool:
    """Whether the current epoch is followed by a validation."""
    return (trainer.current_epoch + 1) % interval == 0 or is_last_epoch(trainer)


class Validation(Callback):
    """Measures the networks on the validation set with the very code of `mal evaluate`."""

    def __init__(
        self,
        measure: Callable[[LightningModule], Mapping[str, float]],
        interval: int,
    ) -> None:
        self.measure = measure
        self.interval = interval
        self.figures: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure when it is due; runs before `Checkpoints`."""
        if is_validated_epoch(trainer, self.interval):
            self.figures = dict(self.measure(module))
            module.log_dict(self.figures, logger=True)


class EpochRecords(Callback):
    """Writes a line an epoch to `metrics.jsonl` and `status.json`."""

    def __init__(self, folder: Path, status: StatusLog, num_steps: int) -> None:
        self.path = folder / EPOCH_METRICS_FILE
        self.status = status
        self.num_steps = num_steps
        self.last: dict[str, float] = {}
        self._epoch_started_s = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._epoch_started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Write the epoch's figures."""
        figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.last = figures
        line = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **figures,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "epoch_time_s": round(time.monotonic() - self._epoch_started_s, 3),
        }
        append_record(self.path, line)
        text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.status.write(
            Status.RUNNING,
            f"epoch {line['epoch']}, step {trainer.global_step}/{self.num_steps}: {text}",
            kpi=figures,
        )


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
    """A bar on a terminal, a line now and then in a log."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        """Start counting where the run goes on."""
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

