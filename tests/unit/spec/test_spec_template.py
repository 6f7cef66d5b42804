from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mal.spec import ExperimentSpec, load_spec
from mal.spec.experiment import ACTIONS
from mal.spec.load import ACTION_SECTIONS, iterate_settings
from mal.spec.setting import REQUIRED
from mal.spec.template import spec_template


def keys_of(content: dict[str, object], prefix: str = "") -> list[str]:
    keys = []
    for name, value in content.items():
        nested = isinstance(value, dict)
        keys += keys_of(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return keys


@pytest.mark.parametrize("action", ACTIONS)
def test_the_template_loads_back_to_the_defaults(action: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(spec_template(action))
    overrides = [] if action == "train" else [f"{action}.checkpoint=a.pth"]
    assert load_spec(action, path, overrides) == load_spec(action, {}, overrides)


@pytest.mark.parametrize("action", ACTIONS)
def test_plain_yaml_readers_see_every_key_with_its_default(action: str) -> None:
    content = yaml.safe_load(spec_template(action))
    expected = {
        key: default
        for key, _, _, default in iterate_settings(ExperimentSpec)
        if "." not in key or key.partition(".")[0] in ACTION_SECTIONS[action]
    }
    assert keys_of(content) == list(expected)
    for key, default in expected.items():
        value = content
        for name in key.split("."):
            value = value[name]
        assert value == default
        assert type(value) is type(default)


@pytest.mark.parametrize("action", ACTIONS)
def test_every_key_has_its_comment_above_and_fits_the_page(action: str) -> None:
    lines = spec_template(action).splitlines()
    assert max(map(len, lines)) <= 100
    keys = [index for index, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    assert all(lines[index - 1].lstrip().startswith("# ") for index in keys)


def test_limits_and_required_keys_are_named() -> None:
    text = spec_template("evaluate")
    assert f"  checkpoint: {REQUIRED}\n" in text
    assert "One of epoch, step." in text
    assert "At least 0. At most 1." in text
    assert "1 or 3 values." in text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["spec", "train"], ["train", "--help"], ["recipes"], ["--version"]]
)
def test_what_needs_no_tensors_imports_none(arguments: list[str]) -> None:
    heavy = ("torch", "numpy", "lightning", "timm", "PIL", "pycocotools", "boto3", "kfp")
    code = (
        "import contextlib, sys\n"
        "from mal.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
        f"print('heavy:', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "heavy: []"
