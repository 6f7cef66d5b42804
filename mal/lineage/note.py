"""The metadata of a step's artifacts at the end of its Markdown page.

On a cluster metadata goes to Kubeflow's own database; the object store keeps only the files of
artifacts. The page is one of these, so a run's lineage can be read wherever its files can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

# Outputs that carry a note.
PAGE_OUTPUTS = ("summary", "leaderboard")

_NOTE = re.compile(r"^### Lineage\n\n```json\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


class Noted(Protocol):
    """What is needed of a KFP artifact that is noted."""

    metadata: dict[str, Any]

    @property
    def uri(self) -> str: ...


def with_note(markdown: str, made: Mapping[str, Noted]) -> str:
    """Return a page that ends with uri and metadata of artifacts, by the name of the output."""
    if not made:
        return markdown
    facts = {name: {"uri": artifact.uri, **artifact.metadata} for name, artifact in made.items()}
    # JSON has no line break within a text: none of its lines ends the block.
    return f"{markdown}\n### Lineage\n\n```json\n{json.dumps(facts, indent=2)}\n```\n"


def read_note(page: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield output name and facts of what a page notes."""
    for note in _NOTE.findall(page):
        yield from json.loads(note).items()
