"""The result of a search, the same for local trials and for trials on Katib."""

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
from mal.steps.specs import ARTIFACT_KEYS
from mal.storage.run_lock import LOCK_NAME


@dataclass(frozen=True)
class TunedModel:
    """The result of the tune step, beside the model's folder.

    Attributes:
        experiment: The spec that the model was trained with.
        metrics: Metrics of the training and of the search.
        best_values: Values of the searched keys; empty without a search.
        best_metric: Validation mIoU of the model; -1 where there are no masks to measure with.
        leaderboard: Markdown.
        report: HTML.
        image: Image that trained the model; '' for the step's own.
        warning: Why the model is not useful; '' for a useful one.
    """

    experiment: ExperimentSpec
    metrics: Mapping[str, float]
    best_values: Mapping[str, Any]
    best_metric: float
    leaderboard: str
    report: str
    image: str = ""
    warning: str = ""

    @property
    def best_spec(self) -> str:
        """The spec of the model as text for the steps after it."""
        return spec_text(self.experiment)


def validated_metrics(model_dir: Path) -> dict[str, float]:
    """Return the validation metrics of the best epoch."""
    metrics = metrics_of_best_epoch(model_dir / EPOCH_METRICS_FILE)
    return {name: value for name, value in metrics.items() if name.startswith("val_")}


def take_model(trial: Path, model_dir: Path) -> None:
    """Copy a trial's model; its best checkpoint becomes the latest checkpoint as well."""
    own = shutil.ignore_patterns(SPEC_FILE, LOG_FILE, LOCK_NAME)
    if model_dir.exists():
        shutil.rmtree(model_dir)  # left by the step's first try
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
    """Return a spec as YAML for other steps, without the keys that each step sets itself."""
    content = spec_as_dict(experiment)
    for key in ARTIFACT_KEYS:
        *sections, name = key.split(".")
        section = content
        for each in sections:
            section = section[each]
        section.pop(name, None)
    return yaml.safe_dump(content, sort_keys=False)
