"""`docs/operations.md` has every error that a step on a cluster may end with."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# Those that one row covers (`job.SETTING must ...`), and those of a command's own arguments.
EXEMPT = {
    "mal/cluster/problems.py",
    "mal/cluster/rules.py",
    "mal/cluster/settings.py",
    "mal/lineage/graph.py",
}
SOURCES = [
    path
    for pattern in ("mal/cluster/*", "mal/registry/*", "mal/steps/*", "pipelines/_cluster*")
    for path in sorted(REPOSITORY.glob(f"{pattern}.py"))
    if str(path.relative_to(REPOSITORY)) not in EXEMPT
]


def texts(source: str) -> Iterator[str]:
    """Yield the texts of a module, with NUL for each value that is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def rules(source: str) -> set[str]:
    """Return what its errors demand, up to the first value in it."""
    found = (re.search(r"\bmust ([^\0]+?) ?'?(?:\0.*)?, got\b", text) for text in texts(source))
    return {f"must {match[1]}" for match in found if match}


def test_rules_are_found_in_errors_and_nowhere_else() -> None:
    source = '''
        """It must hold, whatever comes."""
        a = f"{x} must have version {y} of {z}, got none. Do."
        b = "c must be d, got e."
    '''
    assert rules(f"if True:{source}") == {"must have version", "must be d"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_error_of_a_step_is_in_the_operators_tables(path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert {rule for rule in rules(path.read_text(encoding="utf-8")) if rule not in page} == set()
