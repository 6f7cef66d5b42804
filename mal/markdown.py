"""Markdown for the pages of steps and for README files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mal.shown import printable

_SPECIAL = re.compile(r"([\\`*_~\[\]<>|])")


def short_value(value: object) -> str:
    """Return a value for display; numbers have four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def escaped(text: object) -> str:
    """Return text that Markdown shows as it is; KFP's Markdown knows emphasis within words."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(str(text).split())))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose cells may have Markdown; only `|` is escaped."""

    def cell(value: object) -> str:
        return printable(" ".join(short_value(value).split())).replace("|", "\\|")

    return table([*map(cell, header)], [[*map(cell, row)] for row in rows])
