"""The metadata of a step's artifacts as the last line of its Markdown page.

`mal pipelines lineage` reads a cluster's run from the object store alone, and KFP's launcher
uploads only the output artifacts there: a JSON file beside the page does not reach it, nor does
executor_output.json (docs/decisions/0008-lineage-record.md). Markdown does not show the line.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

# Outputs whose page ends with a record.
PAGE_OUTPUTS = ("summary", "leaderboard")

_START, _END = "<!-- mal-lineage: ", " -->"


class DescribedArtifact(Protocol):
    """The part of a KFP artifact that a record keeps."""

    @property
    def uri(self) -> str: ...

    @property
    def metadata(self) -> dict[str, Any]: ...


def artifact_records(**artifacts: DescribedArtifact) -> dict[str, dict[str, Any]]:
    """Return URI and metadata of artifacts by the name of the output."""
    return {name: {"uri": a.uri, **a.metadata} for name, a in artifacts.items()}


def with_record(markdown: str, **artifacts: DescribedArtifact) -> str:
    """Return a page whose last line holds the records of artifacts."""
    # An escaped `>` cannot end the comment.
    content = json.dumps(artifact_records(**artifacts)).replace(">", "\\u003e")
    return f"{markdown.rstrip()}\n\n{_START}{content}{_END}\n"


def read_record(page: str) -> dict[str, dict[str, Any]]:
    """Return the records of a page; {} for a page without them."""
    line = page.rstrip().rpartition("\n")[2]
    if not (line.startswith(_START) and line.endswith(_END)):
        return {}
    records: dict[str, dict[str, Any]] = json.loads(line[len(_START) : -len(_END)])
    return records
