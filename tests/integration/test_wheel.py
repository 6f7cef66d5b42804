"""What `pip install mal[kfp]` gives: the command line, the components and the pipelines."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PIPELINES = sorted(path.parent.name for path in REPOSITORY.glob("pipelines/*/pipeline.py"))
USE_FROM_PYTHON = """
from mal.kfp import components, pipelines
from mal.kfp.components.train import train
from mal.kfp.pipelines.auto_label import auto_label

print(components.__file__, pipelines.__file__)
print(train.component_spec.name, auto_label.pipeline_spec.pipeline_info.name)
"""

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as an installer unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Of a clone, so that nothing that lies about in this checkout is in it.
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(source)], check=True
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", str(folder), str(source)],
        check=True, timeout=240,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel's `mal` before that of the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_the_wheel_has_no_package_but_mal(installed: Path) -> None:
    packages = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert packages == {"mal"}
    assert not [path for path in installed.rglob("*") if path.is_symlink()]


def test_components_and_pipelines_are_imported_from_the_wheel(
    installed: Path, tmp_path: Path
) -> None:
    process = run(installed, tmp_path, "-c", USE_FROM_PYTHON)
    assert process.returncode == 0, process.stderr
    files, names = process.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files.split())
    assert names == "train auto-label"


def test_the_wheel_compiles_what_is_committed(installed: Path, tmp_path: Path) -> None:
    process = run(installed, tmp_path, "-m", "mal", "pipelines", "compile", "-o", "compiled")
    assert process.returncode == 0, process.stderr
    assert sorted(path.stem for path in (tmp_path / "compiled").iterdir()) == PIPELINES
    for name in PIPELINES:
        compiled = (tmp_path / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
        committed = REPOSITORY / "pipelines" / name / "pipeline.yaml"
        assert compiled == committed.read_text(encoding="utf-8")


def test_the_wheel_does_not_write_into_itself(installed: Path, tmp_path: Path) -> None:
    process = run(installed, tmp_path, "-m", "mal", "pipelines", "compile")
    assert process.returncode == 2
    assert process.stderr.startswith("error: --output must name a folder, got none.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list"], [f"{name}: " for name in PIPELINES]),
        (["--help"], ["usage: mal pipelines ", "submit", "schedule", "lineage", "promote"]),
    ],
    ids=["list", "help"],
)
def test_the_command_has_what_the_repository_has(
    installed: Path, tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    process = run(installed, tmp_path, "-m", "mal", "pipelines", *arguments)
    assert process.returncode == 0, process.stderr
    assert [text for text in expected if text not in process.stdout] == []
