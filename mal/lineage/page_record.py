"""The metadata of a step's artifacts as the last line of its Markdown page.

`mal pipelines lineage` reads a cluster's run from the object store alone, and KFP's launcher
uploads only the output artifacts there: a JSON file beside the page does not reach it, nor does
executor_output.json (docs/decisions/0008-lineage-record.md). Markdown does not show the line, nor
does KFP's page: markdown-to-jsx drops comments also where it shows other HTML as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def with_record(
    markdown: str, spec: Mapping[str, str] | None = None, /, **artifacts: DescribedArtifact
) -> str:
    """Return a page whose last line holds the records of artifacts.

    Args:
        markdown: The page.
        spec: The resolved spec as JSON, by the name of its key: it is too long for metadata.
        artifacts: By the name of the output.
    """
    records = {
        name: {**entry, **(spec or {})} for name, entry in artifact_records(**artifacts).items()
    }
    # An escaped `>` cannot end the comment.
    content = json.dumps(records).replace(">", "\\u003e")
    return f"{markdown.rstrip()}\n\n{_START}{content}{_END}\n"


def read_record(page: str) -> dict[str, dict[str, Any]]:
    """Return the records of a page; {} for a page without them."""
    line = page.rstrip().rpartition("\n")[2]
    if not (line.startswith(_START) and line.endswith(_END)):
        return {}
    records: dict[str, dict[str, Any]] = json.loads(line[len(_START) : -len(_END)])
    return records
