"""The train step that may search first: its route, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_searches import use_fake_trials
from fake_trial import BEST_LR
from kfp_artifact import Artifact
from tiny_sets import TinySet, training_spec, write_tiny_set

from mal.automl.settings import Budget, SearchSettings
from mal.errors import MissingExtraError, SpecError
from mal.model.checkpoint import read_checkpoint
from mal.spec import ExperimentSpec, load_spec
from mal.stages import run_train
from mal.steps import Step
from mal.steps import tune as tuning
from mal.steps.tune import search_here, train_or_search, tuned_model_metadata
from mal.steps.tuned_model import TunedModel, spec_text, take_model
from mal.tao.parent_job import parent_model

SETTINGS = SearchSettings(ranges=("train.lr=1e-6:5e-3:log",), budget=Budget(num_trials=6))


@pytest.fixture
def data(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set")


@pytest.fixture
def without_masks(data: TinySet) -> TinySet:
    document = data.document()
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    return data.rewritten(document, "boxes_only.json")


class SearchCalledError(Exception):
    """The route went to the search."""


def search_called(_spec: ExperimentSpec, _settings: SearchSettings) -> TunedModel:
    raise SearchCalledError


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = read_checkpoint(folder / "mal_model_latest.pth")["state_dict"]
    return content


def test_policy_off_gives_exactly_the_weights_of_the_plain_training(
    data: TinySet, tmp_path: Path
) -> None:
    plain = run_train(training_spec(data, tmp_path / "plain", val=data))
    tuned = train_or_search(
        training_spec(data, tmp_path / "off", val=data),
        policy="off",
        settings=SETTINGS,
        search=search_called,
    )
    expected, found = weights_in(tmp_path / "plain"), weights_in(tmp_path / "off")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert tuned.best_metric == plain.metrics["val_mIoU"]
    assert tuned.best_values == {}
    assert "automl_policy is off" in tuned.leaderboard


@pytest.mark.parametrize("policy", ["auto", "on", ""])
def test_with_masks_to_rank_by_the_default_is_to_search(
    policy: str, data: TinySet, tmp_path: Path
) -> None:
    spec = training_spec(data, tmp_path / "model", val=data)
    with pytest.raises(SearchCalledError):
        train_or_search(spec, policy=policy, settings=SETTINGS, search=search_called)


def test_auto_without_masks_trains_plainly_and_says_why(
    without_masks: TinySet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = training_spec(without_masks, tmp_path / "model", val=without_masks)
    with caplog.at_level("INFO", logger="mal"):
        tuned = train_or_search(spec, policy="auto", settings=SETTINGS, search=search_called)
    assert "dataset.val_ann_path must have true masks to rank trials" in tuned.leaderboard
    assert (tmp_path / "model" / "mal_model_latest.pth").exists()
    assert tuned.best_metric == tuning.UNMEASURED


def test_on_without_masks_is_an_error(without_masks: TinySet, tmp_path: Path) -> None:
    spec = training_spec(without_masks, tmp_path / "model", val=without_masks)
    with pytest.raises(SpecError, match="must have true masks to rank trials"):
        train_or_search(spec, policy="on", settings=SETTINGS, search=search_called)


def test_without_optuna_auto_trains_plainly_and_on_names_the_extra(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise MissingExtraError("optuna", "automl")

    monkeypatch.setattr(tuning, "require_optuna", refuse)
    spec = training_spec(data, tmp_path / "model", val=data)
    tuned = train_or_search(spec, policy="auto", settings=SETTINGS, search=search_called)
    assert "pip install 'mal[automl]'" in tuned.leaderboard
    with pytest.raises(MissingExtraError):
        train_or_search(spec, policy="on", settings=SETTINGS, search=search_called)


@pytest.fixture
def searched(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[TunedModel, Path]:
    use_fake_trials(monkeypatch)
    spec = training_spec(data, tmp_path / "model", "train.lr=1e-6", val=data)
    return search_here(spec, SETTINGS), tmp_path / "model"


def test_a_search_leaves_the_model_of_its_best_trial(searched: tuple[TunedModel, Path]) -> None:
    tuned, folder = searched
    best_lr = tuned.best_values["train.lr"]
    assert BEST_LR / 100 < best_lr < BEST_LR * 100
    assert {path.name for path in folder.glob("*.pth")} >= {
        "mal_model_best.pth",
        "mal_model_latest.pth",
    }
    for name in ("mal_model_best.pth", "mal_model_latest.pth"):
        assert json.loads((folder / name).read_text()) == best_lr
    assert json.loads(Path(parent_model(folder)).read_text()) == best_lr
    assert tuned.best_metric == tuned.metrics["val_mIoU"] > tuned.metrics["baseline_val_mIoU"]
    assert tuned.leaderboard.count("\n") == 2 + 6
    assert "<h1>AutoML search</h1>" in tuned.report


def test_the_best_spec_is_for_other_steps_to_set_their_places(
    searched: tuple[TunedModel, Path],
) -> None:
    tuned, _ = searched
    content = yaml.safe_load(tuned.best_spec)
    assert content["train"]["lr"] == tuned.best_values["train.lr"]
    assert "results_dir" not in content
    assert not {"train_ann_path", "val_img_dir"} & content["dataset"].keys()
    assert load_spec("train", content).train.lr == tuned.best_values["train.lr"]


def metadata_of(tuned: TunedModel, folder: Path) -> dict[str, Any]:
    """Return the metadata of the model that the step writes."""
    model = Artifact(str(folder))
    Step().write_artifact(model, tuned_model_metadata(tuned, model))
    return model.metadata


def test_a_model_names_the_commit_and_the_image_of_its_trial(
    searched: tuple[TunedModel, Path], data: TinySet, tmp_path: Path
) -> None:
    tuned, folder = searched
    trial = shutil.copytree(folder, tmp_path / "trial", symlinks=True)
    maker = {"git_commit": "0123abc", "image_digest": "sha256:12ab"}
    (trial / "manifest.json").write_text(json.dumps(maker))
    take_model(trial, tmp_path / "model")
    metadata = metadata_of(tuned, tmp_path / "model")
    assert (metadata["git_sha"], metadata["image_digest"]) == ("0123abc", "sha256:12ab")
    on_katib = dataclasses.replace(tuned, image="mal/train@sha256:34cd")
    assert metadata_of(on_katib, tmp_path / "model")["image_digest"] == "sha256:34cd"


def test_a_model_says_by_which_search_it_was_found(
    searched: tuple[TunedModel, Path], data: TinySet
) -> None:
    tuned, folder = searched
    metadata = metadata_of(tuned, folder)
    assert json.loads(metadata["best_params"]) == tuned.best_values
    assert metadata["num_trials"] == 6
    assert metadata["val_mIoU"] > metadata["baseline_val_mIoU"]
    assert all(isinstance(value, str | float) for value in metadata.values())


def test_a_plainly_trained_model_names_no_search(data: TinySet, tmp_path: Path) -> None:
    tuned = train_or_search(
        training_spec(data, tmp_path / "model"),
        policy="off",
        settings=SETTINGS,
        search=search_called,
    )
    metadata = metadata_of(tuned, tmp_path / "model")
    assert metadata.keys().isdisjoint({"best_params", "num_trials", "baseline_val_mIoU"})


def test_every_trial_starts_from_the_weights_of_the_plain_training(
    data: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trials(monkeypatch)
    champion = "s3://models/nuclei/versions/1/model/mal_model_latest.pth"
    overrides = (f"train.pretrained_model_path={champion}", "train.lr=1e-6")
    tuned = search_here(training_spec(data, tmp_path / "model", *overrides, val=data), SETTINGS)
    trials = [
        yaml.safe_load(path.read_text())["train"]
        for path in sorted((tmp_path / "search").glob("automl/trials/*/spec.yaml"))
    ]
    assert {trial["pretrained_model_path"] for trial in trials} == {champion}
    assert trials[0]["lr"] == 1e-6
    assert len({trial["lr"] for trial in trials}) == len(trials) == 6
    assert tuned.experiment.train.pretrained_model_path == champion


def test_a_retry_goes_on_with_the_search_of_the_earlier_try(
    searched: tuple[TunedModel, Path], data: TinySet
) -> None:
    tuned, folder = searched
    spec = training_spec(data, folder, "train.lr=1e-6", val=data)
    again = search_here(spec, SETTINGS)
    assert again.best_values == tuned.best_values
    assert again.leaderboard == tuned.leaderboard


def test_a_spec_as_text_is_the_spec(data: TinySet, tmp_path: Path) -> None:
    spec = training_spec(data, tmp_path / "model", "train.loss_mil_weight=3.5")
    assert load_spec("train", yaml.safe_load(spec_text(spec))).train.loss_mil_weight == 3.5
