"""Processes in which packages are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# Found before the environment's own; also by the processes that the process starts.
_SITE_CUSTOMIZE = """
import importlib.machinery, importlib.metadata

ABSENT = {absent!r}
find_spec = importlib.machinery.PathFinder.find_spec
find_distributions = importlib.metadata.MetadataPathFinder.find_distributions

def find_present_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find_spec(name, path, target)

def find_present_distributions(context=importlib.metadata.DistributionFinder.Context()):
    found = find_distributions(context)
    return (each for each in found if each.metadata["Name"].replace("-", "_") not in ABSENT)

importlib.machinery.PathFinder.find_spec = staticmethod(find_present_spec)
importlib.metadata.MetadataPathFinder.find_distributions = staticmethod(find_present_distributions)
"""


def run_without(
    packages: Iterable[str], arguments: Sequence[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments, in a folder, as if packages were not installed."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    text = _SITE_CUSTOMIZE.format(absent=set(packages))
    (site / "sitecustomize.py").write_text(text, encoding="utf-8")
    repository = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), repository])},
        capture_output=True,
        text=True,
        check=False,
    )
