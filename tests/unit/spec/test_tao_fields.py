"""The spec takes every key of TAO's MAL, with its default and at least its range."""

from __future__ import annotations

import csv
import json
import typing
from pathlib import Path

import pytest

from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import ACTION_SECTIONS, iterate_settings

FIELDS_FILE = Path(__file__).parents[4] / "shared" / "spec" / "tao_mal_fields.csv"
SETTINGS = {
    key: (hint, facts, default) for key, hint, facts, default in iterate_settings(ExperimentSpec)
}
ROWS = list(csv.DictReader(FIELDS_FILE.open())) if FIELDS_FILE.exists() else []

pytestmark = pytest.mark.skipif(not ROWS, reason=f"{FIELDS_FILE} is not on this machine")
each_field = pytest.mark.parametrize("row", ROWS, ids=[row["key"] for row in ROWS])


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
    section, dot, _ = row["key"].partition(".")
    for action in row["actions"].split("|"):
        assert not dot or section in ACTION_SECTIONS[action]


def test_a_file_with_every_key_of_tao_is_taken_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "tao.yaml"
    path.write_text("".join(f"{row['key']}: {row['default']}\n" for row in ROWS))
    assert load_spec("train", path) == ExperimentSpec()
