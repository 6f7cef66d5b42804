"""A Python with the library `ml-metadata`, whose protobuf is not that of kfp."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "ml-metadata==1.17.1"
DRIVER = Path(__file__).parent / "stand_in" / "kfp_driver.py"


def python_with_ml_metadata() -> Path:
    """Return the interpreter of an environment that is made once; skips where it cannot be made."""
    folder = Path(tempfile.gettempdir()) / f"mal-{PACKAGE.replace('==', '-')}-{os.getuid()}"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        base = shutil.which("python3.11")
        if base is None:
            pytest.skip("ml-metadata has wheels up to Python 3.11, and there is no python3.11")
        for command in (
            [base, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", PACKAGE],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"{PACKAGE} cannot be installed: {made.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    return python


def record_run(spec: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Record every task of a compiled pipeline as KFP's driver does."""
    path = folder / "pipeline.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = [str(python_with_ml_metadata()), str(DRIVER), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
