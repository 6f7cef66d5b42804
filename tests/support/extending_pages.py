"""Runs the code blocks of a page of docs/extending, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "docs" / "extending"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# (\S+\.py)\n")


def write_files(page: str, folder: Path) -> list[str]:
    """Write the page's Python files (named in their first line) and return its shell commands."""
    commands: list[str] = []
    for language, text in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        if language == "bash":
            commands += text.splitlines()
        elif name := _FILE_NAME.match(text):
            (folder / name[1]).write_text(text, encoding="utf-8")
    return commands


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a page with this Python, in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "PYTHONPATH": str(PAGES.parents[1]),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "MAL_CACHE_DIR": str(folder / "cache"),
    }
    return subprocess.run(
        command,
        shell=True,
        check=False,
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=240,
    )
