"""`docs/operations.md` has every error that a step on a cluster may end with."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# One row covers the settings of a job (`job.SETTING must ...`); the others are for developers.
EXEMPT = {
    "mal/cluster/backends.py",
    "mal/cluster/job_kind.py",
    "mal/cluster/problems.py",
    "mal/cluster/rules.py",
    "mal/cluster/settings.py",
}
SOURCES = [
    path
    for pattern in (
        "mal/storage/stores",
        "mal/storage/kfp_launcher",
        "mal/cluster/*",
        "mal/registry/*",
        "mal/steps/*",
        "pipelines/_cluster*",
    )
    for path in sorted(REPOSITORY.glob(f"{pattern}.py"))
    if str(path.relative_to(REPOSITORY)) not in EXEMPT
]
MIN_WORDS = 3


def messages(source: str) -> Iterator[str]:
    """Yield the message of each error that a module makes, with NUL for each value in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("Error"):
            message = node.args[0]
            if isinstance(message, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in message.values)
                yield "".join(map(str, parts))
            elif isinstance(message, ast.Constant) and isinstance(message.value, str):
                yield message.value


def opening(message: str) -> str:
    """Return the first words of a message that name no value; '' if there are too few.

    An error about a command's own option explains itself.
    """
    if message.startswith("--"):
        return ""
    parts = (re.split(r"\. |, got| \(", part)[0].strip(" .,:;('") for part in message.split("\0"))
    return next((part for part in parts if len(part.split()) >= MIN_WORDS), "")


def missing_on(page: str, source: str) -> set[str]:
    text = re.sub(r"\s+", " ", page)
    return {found for found in map(opening, messages(source)) if found not in text}


def test_an_error_that_is_not_on_the_page_is_found() -> None:
    source = """
raise ClusterError(f"{kind} {name} was lost without a trace at {host}. Run again.")
raise StorageError("Cannot find the store. Check it.")
raise ValueError(f"{a}")
"""
    assert missing_on("| `KIND NAME was lost without a trace at HOST` |", source) == {
        "Cannot find the store"
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_error_of_a_step_is_in_the_operators_tables(path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert missing_on(page, path.read_text(encoding="utf-8")) == set()
