"""Searches whose trials take milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mal.automl import trial
from mal.automl.cost import TrialCost
from mal.automl.devices import NO_SLOT, Slot
from mal.automl.search import Search, SearchPlan
from mal.automl.settings import SearchSettings
from mal.automl.space import build_search_space
from mal.automl.study import SearchStudy
from mal.automl.trial_record import TrialRecord
from mal.runtime import StopRequest
from mal.spec import load_spec
from mal.spec.schema import action_schema

SUPPORT = Path(__file__).parent
NUM_EPOCHS = 6
COST = TrialCost(NUM_EPOCHS, NUM_EPOCHS, 0.01, 0.0, 0.0, "cpu")
BASELINE_LR = 1e-5


def use_fake_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIAL_MODULE", "fake_trial")
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


def plan_in(
    folder: Path,
    settings: SearchSettings,
    slots: tuple[Slot, ...] = (NO_SLOT,),
    keys: Mapping[str, Any] = {},
) -> SearchPlan:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"train.lr": BASELINE_LR, "train.num_epochs": NUM_EPOCHS, **keys}
    spec = load_spec("train", {}, [f"{key}={value}" for key, value in given.items()])
    space = build_search_space(action_schema("train"), settings.keys, settings.ranges)
    return SearchPlan(folder, spec, space, settings, slots)


def study_of(plan: SearchPlan) -> SearchStudy:
    return SearchStudy(
        plan.folder,
        algorithm=plan.settings.algorithm,
        space=plan.space,
        baseline=plan.baseline,
        epochs_per_trial=NUM_EPOCHS,
        seed=plan.settings.seed,
        fingerprint=plan.fingerprint,
    )


def search(plan: SearchPlan, on_finished: Callable[[TrialRecord], None] = print) -> SearchStudy:
    study = study_of(plan)
    Search(plan, study, COST, on_finished).run(StopRequest())
    return study
