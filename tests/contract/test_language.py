"""The product uses the words of its glossary: plain technical English, one word per concept."""

from __future__ import annotations

from pathlib import Path

import pytest
from language import REPOSITORY, findings, product_files


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "Run it again to mend the table."),
        ("a.py", "def tell(line): ...\n"),
        ("a.py", "num_figures = 3\n"),
        ("a.py", "class JobRefusal: ...\n"),
        ("a.py", "x = 'the place of the file'\n"),
        ("a.py", '"""A thing.\n\nAttributes:\n    name: Of the thing.\n"""\n'),
    ],
    ids=["document", "function", "part of a name", "class", "message", "fragment"],
)
def test_a_word_that_the_glossary_replaces_is_found(name: str, text: str, tmp_path: Path) -> None:
    assert list(findings(write(tmp_path, name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "The placeholder is replaced in place."),
        ("a.py", "configured = 3\n"),
        ("a.j2", "<figure><img></figure>"),
        ("a.py", "study.tell(trial, 0.5)\n"),
    ],
    ids=["other meanings", "a longer word", "HTML", "the API of a library"],
)
def test_other_words_are_not(name: str, text: str, tmp_path: Path) -> None:
    assert list(findings(write(tmp_path, name, text))) == []


def test_the_product_has_none_of_these_words() -> None:
    found = [
        str(finding._replace(path=finding.path.relative_to(REPOSITORY)))
        for path in product_files()
        for finding in findings(path)
    ]
    assert found == [], "\n".join(found)
