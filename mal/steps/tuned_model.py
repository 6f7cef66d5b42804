"""What a search leaves to the steps after it, wherever its trials ran."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    LATEST_CHECKPOINT,
    MANIFEST_FILE,
    made_by,
    point_at,
    write_manifest,
)
from mal.automl.trial import LOG_FILE, SPEC_FILE
from mal.evaluation.baselines import metrics_of_best_epoch
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import spec_as_dict
from mal.steps.step import ARTIFACT_KEYS
from mal.storage.run_lock import LOCK_NAME


@dataclass(frozen=True)
class TunedModel:
    """What the step leaves, beside the model's folder.

    Attributes:
        experiment: The spec that the model was trained with.
        figures: Of the training, and of the search.
        best_values: Of the searched keys; empty after a plain training.
        best_metric: Validation mIoU of the model; -1 where there are no masks to measure with.
        best_spec: YAML text for the steps after it.
        leaderboard: Markdown.
        report: HTML.
        image: That trained it, where that is not the step's own.
        warning: That the model is not better than what needs no training; '' if it is.
    """

    experiment: ExperimentSpec
    figures: Mapping[str, float]
    best_values: Mapping[str, Any]
    best_metric: float
    best_spec: str
    leaderboard: str
    report: str
    image: str = ""
    warning: str = ""


def validated_metrics(model_dir: Path) -> dict[str, float]:
    """Return what the validation of a model's best epoch measured."""
    metrics = metrics_of_best_epoch(model_dir / EPOCH_METRICS_FILE)
    return {name: value for name, value in metrics.items() if name.startswith("val_")}


def take_model(trial: Path, model_dir: Path) -> None:
    """Make the model's folder of a trial's: its best checkpoint is also the latest."""
    own = shutil.ignore_patterns(SPEC_FILE, LOG_FILE, LOCK_NAME)
    if model_dir.exists():
        shutil.rmtree(model_dir)  # of the step's earlier try
    shutil.copytree(trial, model_dir, symlinks=True, ignore=own)
    best = (model_dir / BEST_CHECKPOINT).resolve()
    point_at(model_dir / LATEST_CHECKPOINT, best)
    for path in model_dir.glob("mal_model_epoch_*.pth"):
        if path.resolve() != best:
            path.unlink()
    maker = made_by()
    if (trial / MANIFEST_FILE).is_file():  # a trial that was stopped early has none
        manifest = json.loads((trial / MANIFEST_FILE).read_bytes())
        maker = {name: manifest.get(name) for name in maker}
    write_manifest(model_dir, action="train", inputs={}, maker=maker)


def spec_text(experiment: ExperimentSpec) -> str:
    """Return a spec as YAML for other steps, without the places that each step sets itself."""
    content = spec_as_dict(experiment)
    for key in ARTIFACT_KEYS:
        *sections, name = key.split(".")
        section = content
        for each in sections:
            section = section[each]
        section.pop(name, None)
    return yaml.safe_dump(content, sort_keys=False)
