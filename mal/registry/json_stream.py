"""Read and write COCO files entry by entry, for files larger than the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mal.data.annotation_stream import read_members, write_members


def stream_entries(path: Path, key: str) -> Iterator[Any]:
    """Yield the entries of a top-level list without holding the list.

    Raises:
        AnnotationError: The file is not JSON.
    """
    for member in read_members(path):
        if member.key == key and member.entries is not None:
            for entry in member.entries:
                yield entry.value
            return


def read_value(path: Path, key: str) -> Any:
    """Return the value of a top-level key; None for a missing key.

    Raises:
        AnnotationError: The file is not JSON.
    """
    for member in read_members(path):
        if member.key == key:
            return (
                member.value
                if member.entries is None
                else [entry.value for entry in member.entries]
            )
    return None


def list_keys(path: Path) -> list[str]:
    """Return the top-level keys in the order of the file.

    Raises:
        AnnotationError: The file is not JSON.
    """
    return [member.key for member in read_members(path)]


def write_stream(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object; an iterator is written as a list while it yields."""
    write_members(path, content.items())
