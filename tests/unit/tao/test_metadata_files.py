"""The generated files are packaged, current, and say what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import mal.tao
from mal.cli import build_parser, main
from mal.spec import ExperimentSpec
from mal.spec.experiment import ACTIONS
from mal.spec.load import SHORTHANDS, iterate_settings
from mal.spec.packaged import packaged_metadata_folder
from mal.tao.metadata import metadata_files, write_metadata

KEYS = {key for key, *_ in iterate_settings(ExperimentSpec)}


@pytest.fixture(scope="module")
def skill_info() -> dict[str, Any]:
    info: dict[str, Any] = yaml.safe_load(metadata_files()["references/skill_info.yaml"])
    return info


@pytest.mark.parametrize("name", metadata_files())
def test_the_packaged_file_is_current(name: str) -> None:
    path = packaged_metadata_folder() / name
    assert path.read_text() == metadata_files()[name], "run make compile"


def test_nothing_outdated_is_packaged() -> None:
    folder = Path(str(packaged_metadata_folder()))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(metadata_files())


def test_the_command_writes_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", "-o", str(tmp_path / "new")]) == 0
    told = capsys.readouterr().out.splitlines()
    written = {Path(line).relative_to(tmp_path / "new").as_posix() for line in told}
    assert written == set(metadata_files())
    for name, text in metadata_files().items():
        assert (tmp_path / "new" / name).read_text() == text


def test_a_folder_that_cannot_be_written_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["schema", "-o", str(tmp_path / "file")]) == 2


def test_the_manifest_names_a_schema_and_a_template_that_fit(tmp_path: Path) -> None:
    write_metadata(tmp_path)
    manifest = json.loads((tmp_path / "schemas" / "manifest.json").read_text())
    assert list(manifest["actions"]) == list(ACTIONS)
    for files in manifest["actions"].values():
        schema = json.loads((tmp_path / files["schema"]).read_text())
        template = yaml.safe_load((tmp_path / files["template"]).read_text())
        jsonschema.validate(template, schema)
        assert template == schema["default"]
        assert files["automl_default_parameters"] == schema["automl_default_parameters"]


@pytest.mark.parametrize("action", ACTIONS)
def test_what_an_action_takes_gives_and_infers_are_keys_of_the_spec(
    action: str, skill_info: dict[str, Any]
) -> None:
    info = skill_info["actions"][action]
    named = {*info["inputs"], *info["outputs"], *info["data_sources"], *info["spec_params"]}
    assert named <= KEYS
    assert set(info["data_sources"]) <= set(info["inputs"])
    for function in info["spec_params"].values():
        assert callable(getattr(mal.tao, function))
    assert build_parser().parse_args(info["command"].split()[1:]).action == action


def test_the_model_says_how_it_is_scaled_watched_and_searched(skill_info: dict[str, Any]) -> None:
    assert skill_info["automl_enabled"] is True
    assert skill_info["monitoring_metric"] == "mIoU"
    assert {skill_info["gpu_spec_key"], skill_info["node_spec_key"]} <= KEYS
    assert skill_info["shorthands"].keys() == SHORTHANDS.keys()
