"""One trial of a search, as a process: `python -m mal.stages.trial SPEC.yaml`.

With a second argument it only measures the cost of a trial and writes it to that file as JSON.
`mal.automl` starts it; it is not a command for users.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mal.artifacts import EPOCH_METRICS_FILE, PROFILE_FILE, write_json
from mal.data.box_masks import NO_MASKS
from mal.data.crop_dataset import ImageReader, select_training_boxes
from mal.data.datamodule import open_image_set
from mal.data.images import allow_image_mpx
from mal.distributed.workers import end_with_parent
from mal.errors import EXIT_USER_ERROR, MalError, SpecError
from mal.evaluation.metrics import rows_to_measure
from mal.runtime import Interrupted, choose_device, set_up_logging
from mal.spec import load_spec
from mal.spec.experiment import ExperimentSpec
from mal.stages import run_train
from mal.stages.measure import without_box_masks

MEASURED_STEPS = 8
MEASURED_BOXES = 16


def main(arguments: Sequence[str]) -> int:
    """Train a trial, or measure its cost; returns the exit code."""
    spec_file, *answer_file = arguments
    end_with_parent()
    set_up_logging()
    try:
        spec = load_spec("train", spec_file)
        if answer_file:
            write_json(Path(answer_file[0]), _measure(spec))
        else:
            run_train(spec)
    except MalError as error:
        if answer_file:
            write_json(Path(answer_file[0]), {"error": str(error)})
        sys.stderr.write(f"{error}\n")
        return EXIT_USER_ERROR
    except Interrupted as interrupt:
        return interrupt.exit_code
    return 0


def require_measurable(spec: ExperimentSpec) -> ImageReader:
    """Return the validation set, whose masks rank the trials.

    Raises:
        SpecError: There is none, or it has no masks.
    """
    dataset, problem = spec.dataset, ""
    allow_image_mpx(dataset.max_image_mpx)
    if not (dataset.val_ann_path and dataset.val_img_dir):
        problem = "dataset.val_ann_path and dataset.val_img_dir must be set to rank trials, got ''"
    elif not dataset.load_mask:
        problem = "dataset.load_mask must be true to rank trials, got false"
    else:
        reader = open_image_set(
            dataset.val_ann_path,
            dataset.val_img_dir,
            key="dataset.val",
            with_masks=True,
            annotation_type=dataset.type,
        )
        reader, reason = without_box_masks(reader)
        if reader.boxes.has_masks():
            return reader
        problem = (
            f"dataset.val_ann_path must have true masks to rank trials, got {dataset.val_ann_path}:"
            f" {reason or NO_MASKS}"
        )
    raise SpecError(f"{problem}. Give a validation set with masks, or train plainly.")


def _measure(spec: ExperimentSpec) -> dict[str, Any]:
    """Return the fields of a `TrialCost`, and the seconds that the measurement took."""
    reader = require_measurable(spec)
    dataset, train, limits = spec.dataset, spec.train, spec.evaluate
    val_rows = rows_to_measure(
        reader.boxes, min_box_area=limits.min_box_area, min_box_side=limits.min_box_side
    )
    num_val = min(len(val_rows), train.max_val_boxes or len(val_rows))
    training_set = open_image_set(
        dataset.train_ann_path,
        dataset.train_img_dir,
        key="dataset.train",
        with_masks=False,
        annotation_type=dataset.type,
    )
    num_crops = train.cached_crops or len(select_training_boxes(training_set, spec))
    per_step = train.batch_size * train.num_gpus * train.accum_grad_batches
    steps_per_epoch = -(-num_crops // per_step)
    num_steps = train.max_steps or train.num_epochs * steps_per_epoch
    step_s, box_s, measured_s = _time_some_steps(spec, min(MEASURED_BOXES, num_val))
    return {
        "num_epochs": -(-num_steps // steps_per_epoch),
        "num_steps": num_steps,
        "step_s": step_s,
        "validation_s": box_s * num_val,
        "device": choose_device(spec, train.gpu_ids).type,
        "measured_s": measured_s,
    }


def _time_some_steps(spec: ExperimentSpec, num_boxes: int) -> tuple[float, float, float]:
    """Return seconds per step, per validated box, and in total."""
    with tempfile.TemporaryDirectory(prefix="mal-steps-") as folder:
        short = dataclasses.replace(
            spec,
            train=dataclasses.replace(
                spec.train,
                max_steps=MEASURED_STEPS,
                max_val_boxes=num_boxes,
                profile=True,
                oom_fallback=False,
                results_dir=folder,
            ),
            evaluate=dataclasses.replace(spec.evaluate, training_free=False),
            wandb=dataclasses.replace(spec.wandb, enable=False),
        )
        result = run_train(short)
        lines = (Path(folder) / EPOCH_METRICS_FILE).read_text(encoding="utf-8").splitlines()
        profile = json.loads((Path(folder) / PROFILE_FILE).read_text(encoding="utf-8"))
    measured_s = sum(json.loads(line)["epoch_time_s"] for line in lines)
    validation = profile["parts"]["validation"]
    steps_s = max(measured_s - validation["seconds"], 0.0)
    num_measured = num_boxes * validation["times"]
    return (
        steps_s / result.metrics["num_steps"],
        validation["seconds"] / max(num_measured, 1),
        measured_s,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
