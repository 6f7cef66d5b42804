from __future__ import annotations

import pytest

from mal.errors import SpecError
from mal.recipes import list_recipes, read_recipe
from mal.spec import ExperimentSpec, load_spec, spec_as_dict
from mal.spec.experiment import ACTIONS

REQUIRED_KEYS = {
    "train": [],
    "evaluate": ["evaluate.checkpoint=model.pth"],
    "inference": ["inference.checkpoint=model.pth"],
    "export": ["export.checkpoint=model.pth"],
}


def test_the_recipes_of_the_contract_are_packaged() -> None:
    assert {"coco", "demo", "scratch", "small_set", "tao"} <= set(list_recipes())


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_a_valid_spec_of_every_action(name: str, action: str) -> None:
    load_spec(action, f"recipe:{name}", REQUIRED_KEYS[action])


def test_the_tao_recipe_changes_no_default() -> None:
    assert spec_as_dict(load_spec("train", "recipe:tao")) == spec_as_dict(ExperimentSpec())


@pytest.mark.parametrize("name", ["demo", "scratch", "small_set", "coco"])
def test_recipes_predict_alike_in_evaluation_inference_and_export(name: str) -> None:
    spec = load_spec("train", f"recipe:{name}")
    assert spec.evaluate.use_mixed_model_test == spec.inference.use_mixed_model_test
    assert spec.evaluate.use_mixed_model_test == spec.export.use_mixed_model_test
    assert spec.evaluate.use_flip_test == spec.inference.use_flip_test


def test_every_recipe_says_what_it_is_for() -> None:
    for name in list_recipes():
        assert read_recipe(name).startswith("# ")


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="small_set"):
        load_spec("train", "recipe:none")
