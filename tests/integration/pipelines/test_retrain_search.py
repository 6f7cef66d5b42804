"""A retraining that searches: its best trial becomes the champion, and says that it was one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from retraining import BUCKET, Run, retraining_world

from mal.lineage.graph import read_lineage, shown_metadata
from mal.registry.promotion import MODEL_FILES

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1200)]

NUM_TRIALS = 2


@dataclass(frozen=True)
class Search:
    """A plain run, a searching run after it, and what the latter left.

    Attributes:
        records: Of the versions, by name.
        files: Of the second version's model.
        plain: First run.
        run: Second run.
    """

    plain: Run
    run: Run
    records: Mapping[str, Mapping[str, Any]]
    files: frozenset[str]

    @property
    def model(self) -> Mapping[str, Any]:
        """The new champion's model in its lineage."""
        model: Mapping[str, Any] = self.records[self.run.champion]["lineage"]["model"]
        return model

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The spec of each trial, in order."""
        paths = self.run.folder.glob("tune/**/trials/*/spec.yaml")
        return [yaml.safe_load(path.read_text()) for path in sorted(paths)]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    with retraining_world(tmp_path_factory.mktemp("search")) as world:
        world.spec["train"]["max_steps"] = 40
        world.publish(16)
        plain = world.retrain()
        assert plain.exit_code == 0, plain.said
        world.publish(24)
        run = world.retrain(automl_policy="on", trials=str(NUM_TRIALS))
        assert run.exit_code == 0, run.said
        prefix = f"store/versions/{run.champion}/model/"
        listed = world.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        files = frozenset(entry["Key"].removeprefix(prefix) for entry in listed)
        return Search(plain, run, world.records(), files)


def test_the_best_trial_becomes_the_champion_with_all_files_of_a_training(search: Search) -> None:
    assert search.run.champion not in ("", search.plain.champion)
    assert f"budget: at most {NUM_TRIALS} trials" in search.run.said
    assert search.files == set(MODEL_FILES)


def test_every_trial_starts_from_the_champion_and_the_first_with_the_given_settings(
    search: Search,
) -> None:
    trials = [trial["train"] for trial in search.trials]
    assert len(trials) == NUM_TRIALS
    for trial in trials:
        assert f"/versions/{search.plain.champion}/" in trial["pretrained_model_path"]
    assert trials[0]["lr"] == 1e-3 != trials[1]["lr"]


def test_the_lineage_names_the_search_and_the_champion_that_it_started_from(
    search: Search,
) -> None:
    model = search.model
    assert json.loads(model["best_params"]).keys() == {"train.lr", "train.wd"}
    assert model["num_trials"] == NUM_TRIALS
    assert model["val_mIoU"] >= model["baseline_val_mIoU"] > 0
    assert model["parent_model_sha256"] == search.records[search.plain.champion]["sha256"]
    graph = read_lineage(str(search.run.folder))
    assert shown_metadata(graph.find(model["sha256"]))["best_params"] == model["best_params"]


def test_a_plainly_trained_champion_names_no_search(search: Search) -> None:
    model = search.records[search.plain.champion]["lineage"]["model"]
    assert model.keys().isdisjoint({"best_params", "num_trials"})
