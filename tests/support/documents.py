"""The command blocks of the documents, as a reader copies them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = tuple(
    sorted(
        str(path.relative_to(REPOSITORY))
        for pattern in ("*.md", "docs/*.md", "images/*.md", "manifests/*.md")
        for path in REPOSITORY.glob(pattern)
    )
)

_LIST_ITEM = re.compile(r" {0,3}(?:[-*]|\d+\.) +")
_COMMENT = re.compile(r"(?:^| +)# .*$")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of a document.

    Attributes:
        document: Path from the repository's root.
        line: Of its first line, from 1.
        text: Its lines, without the indentation that they share.
    """

    document: str
    line: int
    text: str

    def commands(self) -> Iterator[Command]:
        """Yield its shell commands: continued lines are one, comments are none."""
        parts: list[str] = []
        for number, line in enumerate(self.text.splitlines(), start=self.line):
            parts.append(line)
            if not line.endswith("\\"):
                if text := _COMMENT.sub("", "\n".join(parts)).strip():
                    yield Command(self.document, number - len(parts) + 1, text)
                parts = []


@dataclass(frozen=True)
class Command:
    """A shell command of a document; `line` is that of its first line."""

    document: str
    line: int
    text: str


def read_blocks(document: str) -> list[Block]:
    """Return the blocks of a document, in order."""
    return list(_blocks(document, (REPOSITORY / document).read_text(encoding="utf-8")))


def _blocks(document: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number, margin = 0, 4
    while number < len(lines):
        line, start = lines[number], number
        if line.startswith("```"):
            number += 1
            while not lines[number].startswith("```"):
                number += 1
            yield Block(document, start + 2, "\n".join(lines[start + 1 : number]))
            number += 1
        elif line.startswith(" " * margin) and not lines[start - 1].strip():
            while number < len(lines) and (
                lines[number].startswith(" " * margin) or not lines[number].strip()
            ):
                number += 1
            body = "\n".join(line[margin:].rstrip() for line in lines[start:number])
            yield Block(document, start + 1, body.rstrip())
        else:
            item = _LIST_ITEM.match(line)
            if item:
                margin = len(item[0]) + 4  # a block of a list's item is indented from its text
            elif line.strip() and not line.startswith(" "):
                margin = 4
            number += 1
