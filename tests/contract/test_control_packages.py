"""The steps of the control image import nothing that its lock leaves out."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from mal.kfp.components._generated import list_components

REPOSITORY = Path(__file__).parents[2]
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}  # where the name of a package is another
IMPORT = re.compile(r"^    (from mal[\w.]* import [\w, ]+|import mal[\w.]*)$", re.MULTILINE)
REFUSING = """
import sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}} in the control image")

sys.meta_path.insert(0, Refusal())
"""


def absent_modules() -> set[str]:
    """Return what mal requires and the control image does not have."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=!,\[ ]", each)[0] for each in project["dependencies"]}
    lock = (REPOSITORY / "images" / "locks" / "control.txt").read_text()
    held = {match.lower() for match in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    return {MODULES.get(name, name.replace("-", "_")) for name in required - held}


def imports_of_control_components() -> list[str]:
    sources = [
        (REPOSITORY / "components" / name / "component.py").read_text()
        for name in list_components()
    ]
    return [
        line
        for text in sources
        if "base_image=CONTROL_IMAGE" in text
        for line in IMPORT.findall(text)
    ]


def test_what_steps_of_the_control_image_import_is_in_its_lock() -> None:
    absent = absent_modules()
    assert {"torch", "timm", "lightning"} <= absent
    lines = imports_of_control_components()
    assert any("Step" in line for line in lines)
    program = REFUSING.format(absent=sorted(absent)) + "\n".join(dict.fromkeys(lines))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
