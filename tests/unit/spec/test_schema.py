"""The schemas accept what the loader accepts, and nothing else."""

from __future__ import annotations

import functools
import json
import typing
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mal.errors import SpecError
from mal.recipes import list_recipes
from mal.spec import ExperimentSpec, load_spec, read_spec_source
from mal.spec.backbones import BACKBONES
from mal.spec.experiment import ACTIONS
from mal.spec.load import ALIASES, SHORTHANDS, iterate_settings
from mal.spec.schema import action_schema
from mal.spec.setting import MAX_WHOLE_NUMBER, REQUIRED
from mal.spec.template import spec_template

LEAVES = {key: (hint, facts) for key, hint, facts, _ in iterate_settings(ExperimentSpec)}
CHECKPOINTS = [f"{action}.checkpoint" for action in ACTIONS if action != "train"]
OTHER_NAMES = {**ALIASES, **{name: keys[0] for name, keys in SHORTHANDS.items()}}
each_action = pytest.mark.parametrize("action", ACTIONS)


@functools.cache
def validator(action: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(action_schema(action))


def with_key(document: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    target = document
    *sections, name = key.split(".")
    for section in sections:
        target = target.setdefault(section, {})
    target[name] = value
    return document


def loader_accepts(action: str, document: dict[str, Any]) -> bool:
    try:
        load_spec(action, document)
    except SpecError:
        return False
    return True


def schema_accepts(action: str, document: dict[str, Any]) -> bool:
    return bool(validator(action).is_valid(document))


finite = st.floats(allow_nan=False, allow_infinity=False)
odd_values = (
    st.none() | st.booleans() | st.integers(-600, 600) | finite | st.text(max_size=4)
    | st.sampled_from([REQUIRED, "1e-6", "${results_dir}", "s3://u:p@b/x"])
    | st.sampled_from([MAX_WHOLE_NUMBER, MAX_WHOLE_NUMBER + 1, -(2**70), 4.0, 1e300, -0.0])
    | st.lists(st.integers(-1, 3) | finite | st.none() | st.just([1]) | st.text(), max_size=4)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1)
)  # fmt: skip


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Draw values of the key's own kind, near its bounds, more often than odd ones."""
    hint, facts = LEAVES[OTHER_NAMES.get(key, key)]
    bounds = (facts.minimum, facts.exclusive_minimum, facts.maximum, facts.exclusive_maximum)
    edges = [b + d for b in bounds if b is not None for d in (-1, -0.5, 0, 0.5, 1)]
    number = st.sampled_from([*edges, 0, 1, 2, 3, 4, 16, 32, 48, 56, 64, 504, 512, 0.25])
    if facts.choices:
        return st.sampled_from([*facts.choices]) | odd_values
    if hint is bool:
        return st.booleans() | odd_values
    if hint is str:
        return st.sampled_from(["", "a.pth", REQUIRED]) | odd_values
    if typing.get_origin(hint) is list:
        is_text = typing.get_args(hint)[0] is str
        items = st.text(max_size=3) if is_text else number
        return st.lists(items, max_size=4) | odd_values
    return number | odd_values


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A document that gives each key once, whole checkpoints, and now and then an unknown key."""
    document: dict[str, Any] = {}
    names = [*LEAVES, *OTHER_NAMES, "model.arch", "model.arch", "dataset.crop_size"]
    chosen = draw(st.lists(st.sampled_from(names), max_size=5))
    taken: set[str] = set(CHECKPOINTS)
    for name in chosen:
        keys = set(SHORTHANDS.get(name, (ALIASES.get(name, name),)))
        if not keys & taken:
            taken |= keys
            with_key(document, name, draw(values_of(name)))
    if draw(st.integers(0, 19)) == 0:
        with_key(document, draw(st.sampled_from(["trian", "train.x", "dataset.crop_sze"])), 1)
    if draw(st.integers(0, 19)) == 0:
        document.update(draw(st.sampled_from([{"wandb": None}, {"export": 3}, {"train": []}])))
    for key in CHECKPOINTS:
        if isinstance(document.setdefault(key.partition(".")[0], {}), dict):
            with_key(document, key, "a.pth")
    return document


@each_action
@settings(max_examples=300)
@given(document=documents())
def test_schema_and_loader_accept_the_same(action: str, document: dict[str, Any]) -> None:
    own = document.get(action)
    if action != "train" and not isinstance(own, dict):
        return  # the checkpoint is missing, which a schema does not say
    assume(document.get("results_dir") != "${results_dir}")  # nor that a key refers to itself
    assert schema_accepts(action, document) == loader_accepts(action, document)


@each_action
@pytest.mark.parametrize("key", [*LEAVES, *OTHER_NAMES])
def test_each_key_alone_has_the_same_bounds(action: str, key: str) -> None:
    _, facts = LEAVES[OTHER_NAMES.get(key, key)]
    bounds = (facts.minimum, facts.exclusive_minimum, facts.maximum, facts.exclusive_maximum)
    numbers = [0, 1, 3, 64, -1, 0.75, *(b + d for b in bounds if b is not None for d in (-1, 0, 1))]
    values: list[Any] = [
        *numbers,
        *([n, n] for n in numbers),
        [1, 2, 3],
        [],
        "a",
        "",
        REQUIRED,
        None,
        True,
    ]
    for value in [*values, *facts.choices, {}]:
        document: dict[str, Any] = {a: {"checkpoint": "a.pth"} for a in ACTIONS if a != "train"}
        with_key(document, key, value)
        if key in CHECKPOINTS and value in (None, REQUIRED):
            continue
        assert schema_accepts(action, document) == loader_accepts(action, document), value


@each_action
@pytest.mark.parametrize("arch", [*BACKBONES, "timm:hiera_tiny_224", "timm:", "timm:a b", "hf:a"])
@pytest.mark.parametrize("size", [None, 32, 56, 112, 448, 504])
@pytest.mark.parametrize("head", [None, "pyramid"])
def test_crop_head_and_arch_fit_together_or_not(
    action: str, arch: str, size: int | None, head: str | None
) -> None:
    document: dict[str, Any] = {a: {"checkpoint": "a.pth"} for a in ACTIONS if a != "train"}
    for key, value in (("model.arch", arch), ("crop_size", size), ("model.mask_head", head)):
        if value is not None:
            with_key(document, key, value)
    assert schema_accepts(action, document) == loader_accepts(action, document)


@each_action
def test_a_schema_is_valid_json_schema_and_json(action: str) -> None:
    schema = action_schema(action)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@each_action
@pytest.mark.parametrize("of_action", ACTIONS)
def test_every_template_is_valid_for_every_schema(action: str, of_action: str) -> None:
    template = yaml.safe_load(spec_template(of_action))
    jsonschema.validate(template, action_schema(action))
    assert template == action_schema(of_action)["default"]


@each_action
@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid(action: str, name: str) -> None:
    jsonschema.validate(read_spec_source(f"recipe:{name}"), action_schema(action))


def test_the_search_is_declared_for_training_alone() -> None:
    schema = action_schema("train")
    assert schema["automl_default_parameters"] == ["train.lr", "train.wd"]
    assert schema["properties"]["train"]["properties"]["lr"]["automl_range"] == {
        "low": 1e-7,
        "high": 1e-2,
        "log": True,
    }
    assert {"train.gpu_ids", "wandb.tags"} <= set(schema["automl_disabled_parameters"])
    assert action_schema("evaluate")["automl_default_parameters"] == []


def test_popular_keys_are_a_part_of_the_defaults() -> None:
    schema = action_schema("inference")
    assert schema["popular"]["inference"].keys() < schema["default"]["inference"].keys()
    assert schema["popular"]["dataset"]["crop_size"] == 512
