"""Annotation files read entry by entry: of a file of gigabytes, a hundred kilobytes are held."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mal.errors import AnnotationError

CHUNK_BYTES = 1 << 16

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_ENCODING, _ENCODING_ERRORS = "utf-8", "surrogatepass"  # what json.loads does with bytes


class Entry(NamedTuple):
    """An element of a list, and which bytes of the file hold it."""

    value: Any
    start: int
    num_bytes: int


class Member(NamedTuple):
    """A key of the file with its value, or with the entries of the list that it holds."""

    key: str
    value: Any
    entries: Iterator[Entry] | None


def read_members(path: Path) -> Iterator[Member]:
    """Yield what a JSON object holds, its lists entry by entry.

    Entries that are not asked for are skipped.

    Raises:
        AnnotationError: The file is missing, no JSON (found out where it is read), or no object.
    """
    with _naming_trouble(path):
        with path.open("rb") as file:
            window = _Window(file)
            if window.peek() == "{":
                yield from _members(window, path)
                return
        document = json.loads(path.read_bytes())
    raise AnnotationError(
        f"annotation file must hold a JSON object, got a {type(document).__name__} in {path}. "
        "Give a COCO instance file."
    )


@contextlib.contextmanager
def _naming_trouble(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AnnotationError(
            f"annotation file must exist, got {path}. Give the path of a COCO JSON file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(
            f"annotation file must be readable JSON, got {path} ({error}). Repair or replace it."
        ) from error


def _members(window: _Window, path: Path) -> Iterator[Member]:
    keys: set[str] = set()
    window.take("{")
    has_more = window.peek() != "}"
    while has_more:
        key = window.value(":") if window.peek() == '"' else window.fail("expecting a key")
        if key in keys:
            window.fail(f"a second '{key}'")
        keys.add(key)
        window.take(":")
        if window.peek() == "[":
            entries = _entries(window, path)
            yield Member(key, None, entries)
            for _ in entries:
                pass
        else:
            yield Member(key, window.value(",}"), None)
        has_more = window.take(",}") == ","
    if not keys:
        window.take("}")
    if window.peek():
        window.fail("extra data")


def _entries(window: _Window, path: Path) -> Iterator[Entry]:
    with _naming_trouble(path):
        window.take("[")
        has_more = window.peek() != "]"
        if not has_more:
            window.take("]")
        while has_more:
            window.peek()
            start = window.offset()
            value = window.value(",]")
            yield Entry(value, start, window.offset() - start)
            has_more = window.take(",]") == ","


class _Window:
    """The part of a file that is held as text, and the place in it that is read next."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(_ENCODING)(_ENCODING_ERRORS)
        self._is_at_end = False
        self._text = ""
        self._place = 0
        # Offsets in bytes are counted from the last place that was asked for.
        self._counted_place = 0
        self._counted_bytes = 0
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self._counted_bytes = len(codecs.BOM_UTF8)
        else:
            file.seek(0)

    def offset(self) -> int:
        """Return where in the file the place lies, in bytes."""
        passed = self._text[self._counted_place : self._place]
        num_bytes = len(passed if passed.isascii() else passed.encode(_ENCODING, _ENCODING_ERRORS))
        self._counted_bytes += num_bytes
        self._counted_place = self._place
        return self._counted_bytes

    def peek(self) -> str:
        """Go past white space and return the next character, '' at the end."""
        while True:
            self._place = self._after_space(self._place)
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_more():
                return ""

    def take(self, allowed: str) -> str:
        """Go past the next character, which is one of these."""
        char = self.peek()
        if not char or char not in allowed:
            self.fail(_expecting(allowed))
        self._place += 1
        return char

    def value(self, ends: str) -> Any:
        """Decode the next value and go past it; one of `ends` follows it.

        A number may go on after what is held (`1` of `1.5`): a value counts when its end is seen.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                after = self._after_space(end)
                if after < len(self._text) and self._text[after] in ends:
                    self._place = end
                    return value
                message = _expecting(ends)
            except json.JSONDecodeError as error:
                end, message = error.pos, error.msg
            if not self._read_more():
                self._place = end
                self.fail(message)

    def fail(self, message: str) -> Any:
        """Raise an error that tells the place."""
        raise ValueError(f"{message} at byte {self.offset()}")

    def _after_space(self, place: int) -> int:
        match = _SPACE.match(self._text, place)
        assert match is not None, "it matches nothing, too"
        return match.end()

    def _read_more(self) -> bool:
        """Drop what was read and hold more; at least twice as much where it did not suffice."""
        if self._is_at_end:
            return False
        self.offset()
        rest = self._text[self._place :]
        chunk = self._file.read(max(CHUNK_BYTES, len(rest)))
        self._is_at_end = not chunk
        self._text = rest + self._decoder.decode(chunk, final=self._is_at_end)
        self._place = self._counted_place = 0
        return True


def _expecting(characters: str) -> str:
    return "expecting " + " or ".join(f"'{one}'" for one in characters)
