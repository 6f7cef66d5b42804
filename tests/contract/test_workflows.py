"""The workflows of the code host run the commands of the Makefile, which people run too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs_of(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values())


def commands_of(job: dict[str, Any]) -> list[str]:
    options = job.get("strategy", {}).get("matrix", {}).get("target", [""])
    return [
        step["run"].replace("${{ matrix.target }}", option)
        for option in options
        for step in job["steps"]
        if "run" in step
    ]


@every_workflow
def test_every_make_target_of_a_workflow_exists(path: Path) -> None:
    used = {
        target
        for job in jobs_of(path)
        for command in commands_of(job)
        for target in re.sub(r"^make ", "", command).split()
        if command.startswith("make ")
    }
    assert used
    assert used <= TARGETS


def test_the_workflows_run_what_ci_runs() -> None:
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    here = {command for path in WORKFLOWS for job in jobs_of(path) for command in commands_of(job)}
    expected = set(re.findall(r"^make \S+", ci, re.MULTILINE)) | {
        "make demo",
        "make test-container",
    }
    assert expected <= here


@every_workflow
def test_a_workflow_has_no_more_rights_than_it_needs_and_an_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected = (
        {"contents": "write", "packages": "write"}
        if path.stem == "release"
        else {"contents": "read"}
    )
    assert workflow["permissions"] == expected
    assert all(job["timeout-minutes"] <= 90 for job in jobs_of(path))
