"""What images/build tells the build, seen by a client that writes down its arguments."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CLIENT = '#!/bin/sh\nfor each; do echo "$each"; done\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that images/build runs in, without git."""
    folder = tmp_path / "tree"
    for name in ("images/build", "components/__init__.py", "components/_images.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    client = tmp_path / "client"
    client.write_text(CLIENT)
    client.chmod(0o755)
    return folder


def git(folder: Path, *arguments: str) -> str:
    process = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return process.stdout.strip()


def revision_of_build(folder: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the script imports mal
        "DOCKER": str(folder.with_name("client")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    process = subprocess.run(
        [folder / "images" / "build", "control"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [line for line in process.stdout.splitlines() if line.startswith("REVISION=")]
    assert len(told) == 1
    return told[0].removeprefix("REVISION=")


def test_the_revision_is_the_commit_and_says_when_files_differ_from_it(tree: Path) -> None:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first")
    head = git(tree, "rev-parse", "HEAD")
    assert revision_of_build(tree) == head
    (tree / "new.py").write_text("")
    assert revision_of_build(tree) == f"{head}-dirty"


def test_without_a_commit_nothing_is_claimed(tree: Path) -> None:
    assert revision_of_build(tree) == ""
    git(tree, "init", "--quiet")
    assert revision_of_build(tree) == ""
