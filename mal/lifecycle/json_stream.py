"""COCO files that do not fit into memory: read entry by entry, written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mal.artifacts import writing_atomically
from mal.errors import AnnotationError


def stream_entries(path: Path, key: str) -> Iterator[Any]:
    """Yield the entries of a top-level list without holding the list.

    Raises:
        AnnotationError: The file is no JSON.
    """
    yield from _items(path, f"{key}.item")


def read_value(path: Path, key: str) -> Any:
    """Return the value of a top-level key, whole; None where there is none.

    Raises:
        AnnotationError: The file is no JSON.
    """
    return next(_items(path, key), None)


def list_keys(path: Path) -> list[str]:
    """Return the top-level keys in their order.

    Raises:
        AnnotationError: The file is no JSON.
    """
    import ijson

    with _explaining(path), path.open("rb") as file:
        return [
            str(value)
            for prefix, event, value in ijson.parse(file)
            if event == "map_key" and not prefix
        ]


def write_stream(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object; values that are iterators become lists as they yield."""
    with writing_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, (key, value) in enumerate(content.items()):
            file.write(f"{', ' if number else '{'}{json.dumps(key)}: ")
            if isinstance(value, Iterator):
                file.writelines(_list_parts(value))
            else:
                file.write(json.dumps(value))
        file.write("}\n" if content else "{}\n")


def _list_parts(entries: Iterable[Any]) -> Iterator[str]:
    separator = "["
    for entry in entries:
        yield f"{separator}\n{json.dumps(entry)}"
        separator = ","
    yield "[]" if separator == "[" else "\n]"


def _items(path: Path, prefix: str) -> Iterator[Any]:
    import ijson

    with _explaining(path), path.open("rb") as file:
        yield from ijson.items(file, prefix, use_float=True)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    import ijson

    try:
        yield
    except ijson.JSONError as error:
        raise AnnotationError(
            f"annotation file must be whole, valid JSON, got {path} ({error}). Write it again."
        ) from error
