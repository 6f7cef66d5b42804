"""The spec takes every key of TAO's MAL, with its default and at least its range."""

from __future__ import annotations

import csv
import functools
import json
import operator
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import iterate_settings
from mal.spec.schema import action_schema
from mal.spec.template import spec_template

FIELDS_FILE = Path(__file__).with_name("tao_mal_fields.csv")
SETTINGS = {
    key: (hint, facts, default) for key, hint, facts, default in iterate_settings(ExperimentSpec)
}
ROWS = list(csv.DictReader(FIELDS_FILE.open()))

each_field = pytest.mark.parametrize("row", ROWS, ids=[row["key"] for row in ROWS])


@functools.cache
def template(action: str) -> Any:
    return yaml.safe_load(spec_template(action))


@functools.cache
def schema(action: str) -> dict[str, Any]:
    return action_schema(action)


def test_the_fields_are_those_that_this_machine_has_of_tao() -> None:
    places = (folder / "shared" / "spec" / FIELDS_FILE.name for folder in FIELDS_FILE.parents)
    given = next((place for place in places if place.exists()), None)
    if given is None:
        pytest.skip("there is no shared/spec above this repository")
    assert FIELDS_FILE.read_bytes() == given.read_bytes()


@each_field
def test_a_key_of_tao_has_its_type_and_default(row: dict[str, str]) -> None:
    hint, _, default = SETTINGS[row["key"]]
    assert default == json.loads(row["default"])
    assert (typing.get_origin(hint) or hint).__name__ == row["type"].partition("[")[0]


@each_field
def test_a_key_of_tao_is_bounded_no_tighter(row: dict[str, str]) -> None:
    _, facts, _ = SETTINGS[row["key"]]
    assert set(filter(None, row["choices"].split("|"))) <= set(facts.choices)
    if row["minimum"]:
        assert facts.exclusive_minimum is None
        assert facts.minimum is not None
        assert facts.minimum <= float(row["minimum"])
    if row["maximum"]:
        assert facts.maximum is not None
        assert facts.maximum >= float(row["maximum"])


@each_field
def test_a_key_of_tao_is_in_the_template_of_its_actions(row: dict[str, str]) -> None:
    for action in row["actions"].split("|"):
        value = functools.reduce(operator.getitem, row["key"].split("."), template(action))
        assert value == json.loads(row["default"])


@each_field
def test_a_key_that_tao_never_varies_is_disabled_and_no_other(row: dict[str, str]) -> None:
    for action in row["actions"].split("|"):
        disabled = schema(action)["automl_disabled_parameters"]
        assert (row["key"] in disabled) is (row["automl"] == "disabled")


def nested(rows: list[dict[str, str]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for row in rows:
        target = document
        *sections, name = row["key"].split(".")
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = json.loads(row["default"])
    return document


@pytest.mark.parametrize("action", ["train", "evaluate", "inference"])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_file_with_any_keys_of_tao_is_taken_unchanged(
    action: str, data: st.DataObject, tmp_path: Path
) -> None:
    some = st.lists(st.sampled_from(ROWS), unique_by=lambda row: row["key"])
    document = nested(data.draw(st.just(ROWS) | some))
    assert jsonschema.Draft202012Validator(schema(action)).is_valid(document)
    path = tmp_path / "tao.yaml"
    path.write_text(yaml.safe_dump(document))
    checkpoint = [] if action == "train" else [f"{action}.checkpoint=a.pth"]
    assert load_spec(action, path, checkpoint) == load_spec(action, {}, checkpoint)
