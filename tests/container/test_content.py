"""What the images hold is what the locks say, and may be used by anybody."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from containers import REPOSITORY
from locks import canonical, pins

from mal import __version__

pytestmark = pytest.mark.container

LOCKS_BY_IMAGE = {
    "train": ("torch-cuda", "train"),
    "component": ("torch-cuda", "train", "component", "sdists"),
    "control": ("control", "sdists"),
}


@pytest.fixture(scope="module")
def listed(images: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    process = subprocess.run(
        [REPOSITORY / "images" / "list-content"],
        env={**os.environ, "SBOM_DIR": str(folder), "LICENCES": str(folder / "licences.md")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:]
    return folder


def held_by(name: str, listed: Path) -> dict[str, str]:
    """Return version by name, of what the SBOM of an image lists."""
    sbom: dict[str, Any] = json.loads((listed / f"{name}.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    return {canonical(each["name"]): each["version"] for each in sbom["components"]}


@pytest.mark.parametrize("name", LOCKS_BY_IMAGE)
def test_sbom_lists_exactly_the_locked_packages_and_mal(name: str, listed: Path) -> None:
    locked: dict[str, str] = {}
    for lock in LOCKS_BY_IMAGE[name]:
        locked |= pins(REPOSITORY / "images" / "locks" / f"{lock}.txt")
    assert held_by(name, listed) == {**locked, "mal": __version__}


def test_component_holds_what_the_others_hold(listed: Path) -> None:
    train, component, control = (
        held_by(name, listed) for name in ("train", "component", "control")
    )
    assert (train | control).items() <= component.items()


def test_every_licence_is_known_and_committed(listed: Path) -> None:
    table = (listed / "licences.md").read_text()
    assert table == (REPOSITORY / "docs" / "licences.md").read_text(), "run: make sbom"
    rows = [
        [cell.strip() for cell in line.split("|")] for line in table.splitlines() if "|" in line
    ]
    assert [row[1] for row in rows if "UNKNOWN" in row] == ["cuda-toolkit"]  # an empty package
    assert not [row for row in rows if re.search("non-?commercial", " ".join(row), re.IGNORECASE)]
