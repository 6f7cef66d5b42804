"""What the glossary does not want to read, and where it is written.

`python tests/support/language.py [PATH ...]` lists them all; the whole product without a path.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
TEXT_SUFFIXES = (".md", ".yaml", ".yml", ".toml", ".j2", ".sh")
PRODUCT = ("mal", "components", "pipelines", "docs", "images", "manifests", "README.md", "Makefile")
# Generated from what is checked itself, measured, or records of other projects' words.
EXEMPT = re.compile(
    r"(^|/)(__pycache__|locks|\.)|(component|pipeline)\.yaml$|components/\w+/README\.md$"
    r"|^docs/(licences|performance)\.md$|^mal/(metadata/|kfp/(components|pipelines))"
)


class Rule(NamedTuple):
    """A pattern that is not to be found, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


def _rule(pattern: str, instead: str, flags: int = re.IGNORECASE) -> Rule:
    return Rule(re.compile(pattern, flags), instead)


# A word of a name is a word too: `_` and a change to a capital letter end it.
_START, _END = r"(?-i:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))", r"(?-i:(?![a-z]))"


def _word(words: str, instead: str) -> Rule:
    return _rule(rf"{_START}(?:{words}){_END}", instead)


EVERYWHERE = (
    _word("figures?", "metric"),
    _word("mend(?:s|ed|ing)?", "fix"),
    _word("cures?|put right|puts right", "fix"),
    _word("tell|tells|told|telling|untold", "log, print, report, name, give"),
    _word("wish|wishes|wished", "request, intent"),
    _word("sight|sights", "snapshot, pending reason"),
    _word("settles?|settled|settling", "decide, register_and_promote"),
    _word("refusals?", "API error"),
    _word("takes? along|taken along", "delete"),
    _word("at a look", "at a glance"),
    _word("ends? well|end badly", "succeed, fail"),
    _word("no worse", "within `miou_margin` of"),
    _word("what it is about|what is about", "the artifact it describes"),
    _word("is let go|lets go|let go", "releases"),
    _word("hears?|heard", "receive, read"),
    _word("whereof|thereof|wherein|thereby|hitherto|alike", "plain words"),
    _word("places?", "path, URI, location, position"),
    _word("succession", "retry"),
    _word("levels", "feature maps"),
)
# Parameter and attribute texts of docstrings.
FRAGMENT = _rule(
    r"^\s+\w+: (?:Of|That|Which|Likewise|The same)\b", "say what the name does not, or drop it", 0
)
# Other meanings, and names of matplotlib, Optuna, HTML and CSS.
ALLOWED = re.compile(
    r"\b(?:in|takes?|took|taking|out of) place\b|\bplaceholders?\b|\bplace_cells\b"
    r"|_PLACEHOLDER\b|\baxes\.figure\b|\bfigure\.[a-z]+|\bstudy\.tell\b"
    r"|</?fig(?:ure|caption)\b|\bfigure(?=,? (?:\{|\.|img|fig))|\bbest_figure\b",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """One place that breaks a rule."""

    path: Path
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r} -> {self.instead}"


def findings(path: Path) -> Iterator[Finding]:
    """Yield what a file of the product should say in other words."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        shown = ALLOWED.sub("", line)
        for rule in EVERYWHERE:
            for found in rule.pattern.finditer(shown):
                yield Finding(path, number, found[0], rule.instead)
    if path.suffix == ".py":
        yield from _fragments(path, text)


def _fragments(path: Path, source: str) -> Iterator[Finding]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            doc = node.body[0]
            for offset, line in enumerate(source.splitlines()[doc.lineno - 1 : doc.end_lineno]):
                if found := FRAGMENT.pattern.match(line):
                    yield Finding(path, doc.lineno + offset, found[0].strip(), FRAGMENT.instead)


def product_files(*paths: str) -> list[Path]:
    """Return the files whose language is checked, below the given paths."""
    found: list[Path] = []
    for name in paths or PRODUCT:
        root = (REPOSITORY / name).absolute()
        found += sorted(root.rglob("*")) if root.is_dir() else [root]
    return [
        path
        for path in found
        if path.is_file()
        and (path.suffix in (".py", *TEXT_SUFFIXES) or path.name in ("Makefile", "Containerfile"))
        and not EXEMPT.search(path.relative_to(REPOSITORY).as_posix())
    ]


if __name__ == "__main__":
    for file in product_files(*sys.argv[1:]):
        for finding in findings(file):
            sys.stdout.write(f"{finding._replace(path=finding.path.relative_to(REPOSITORY))}\n")
