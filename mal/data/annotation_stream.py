"""JSON files read and written entry by entry: of a file of gigabytes, memory holds one chunk.

Why not msgspec: docs/decisions/0006-annotation-reader.md.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from mal.artifacts import writing_atomically
from mal.errors import AnnotationError
from mal.redaction import may_hold_secret, redact_json

CHUNK_BYTES = 1 << 16

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_LISTS = ("images", "annotations", "categories")  # also read where they are objects
_ENCODING, _ENCODING_ERRORS = "utf-8", "surrogatepass"  # as json.loads decodes bytes


class Entry(NamedTuple):
    """An element of a list; `start` and `num_bytes` are its byte range in the file."""

    value: Any
    start: int
    num_bytes: int


class Member(NamedTuple):
    """A key of the file with its value or, where the value is a list, with the list's entries."""

    key: str
    value: Any
    entries: Iterator[Entry] | None


def read_members(path: Path) -> Iterator[Member]:
    """Yield the members of a JSON object. Entries that the caller does not read are skipped.

    Raises:
        AnnotationError: The file is missing or not a JSON object. An error in the middle of the
            file is raised when the reader gets there.
    """
    with _wrap_read_errors(path):
        with path.open("rb") as file:
            window = _Window(file)
            if window.peek() == "{":
                yield from _members(window, path)
                return
        document = json.loads(path.read_bytes())
    raise AnnotationError(
        f"Cannot use {path} as a COCO file: it holds a JSON {type(document).__name__}, not an "
        "object. Give a COCO instance file."
    )


def write_members(path: Path, members: Iterable[tuple[str, Any]]) -> None:
    """Write a JSON object atomically; values that are iterators become lists as they yield.

    Secrets in URLs, and the query of a `file_name`, are left out.
    """
    with writing_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for key, value in members:
            file.write(f"{separator}{json.dumps(key)}: ")
            if isinstance(value, Iterator):
                _write_list(file, value)
            else:
                file.write(_json_text(value))
            separator = ",\n"
        file.write("{}\n" if separator == "{\n" else "\n}\n")


def _json_text(value: Any) -> str:
    """Return the JSON of a value without the secrets of its URLs: label files are passed on."""
    text = json.dumps(value)
    return json.dumps(redact_json(value)) if may_hold_secret(text) else text


def _write_list(file: TextIO, values: Iterable[Any]) -> None:
    """Write a list, one element per line."""
    separator = "["
    for value in values:
        file.write(f"{separator}\n{_json_text(value)}")
        separator = ","
    file.write("[]" if separator == "[" else "\n]")


@contextlib.contextmanager
def _wrap_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AnnotationError(
            f"Cannot read the annotation file {path}: it does not exist. Check the path."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(
            f"Cannot read the annotation file {path} as JSON: {error}. Repair or replace it."
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
        # LIVECell has its annotations as an object, by their ids.
        if window.peek() == "[" or (window.peek() == "{" and key in _LISTS):
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
    with _wrap_read_errors(path):
        is_object = window.take("[{") == "{"
        end = "}" if is_object else "]"
        has_more = window.peek() != end
        if not has_more:
            window.take(end)
        while has_more:
            if is_object:
                window.value(":") if window.peek() == '"' else window.fail("expecting a key")
                window.take(":")
            window.peek()
            start = window.offset()
            value = window.value(f",{end}")
            yield Entry(value, start, window.offset() - start)
            has_more = window.take(f",{end}") == ","


class _Window:
    """The part of a file that memory holds as text, and the position of the next character."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(_ENCODING)(_ENCODING_ERRORS)
        self._is_at_end = False
        self._num_read = 0
        self._text = ""
        self._position = 0
        # Byte offsets are counted on from the last call of `offset`.
        self._counted_position = 0
        self._counted_bytes = 0
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self._counted_bytes = self._num_read = len(codecs.BOM_UTF8)
        else:
            file.seek(0)

    def offset(self) -> int:
        """Return the position as a byte offset in the file."""
        passed = self._text[self._counted_position : self._position]
        num_bytes = len(passed if passed.isascii() else passed.encode(_ENCODING, _ENCODING_ERRORS))
        self._counted_bytes += num_bytes
        self._counted_position = self._position
        return self._counted_bytes

    def peek(self) -> str:
        """Skip white space and return the next character, '' at the end."""
        while True:
            self._position = self._after_space(self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def take(self, allowed: str) -> str:
        """Read the next character, which must be one of these."""
        char = self.peek()
        if not char or char not in allowed:
            self.fail(_expecting(allowed))
        self._position += 1
        return char

    def value(self, ends: str) -> Any:
        """Read the next value. One of the characters `ends` must follow it.

        The text may stop inside a number (`1` of `1.5`): a value is complete when its end is read.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
                after = self._after_space(end)
                if after < len(self._text) and self._text[after] in ends:
                    self._position = end
                    return value
                message = _expecting(ends)
            except json.JSONDecodeError as error:
                end, message = error.pos, error.msg
            if not self._read_more():
                self._position = end
                self.fail(message)

    def fail(self, message: str) -> Any:
        """Raise a ValueError that names the byte offset."""
        raise ValueError(f"{message} at byte {self.offset()}")

    def _after_space(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        assert match is not None, "the pattern matches the empty text too"
        return match.end()

    def _read_more(self) -> bool:
        """Drop the text that was read and add a chunk, at least as long as the rest."""
        if self._is_at_end:
            return False
        self.offset()
        rest = self._text[self._position :]
        chunk = self._file.read(max(CHUNK_BYTES, len(rest)))
        self._is_at_end = not chunk
        self._num_read += len(chunk)
        self._text = rest + self._decode(chunk)
        self._position = self._counted_position = 0
        return True

    def _decode(self, chunk: bytes) -> str:
        num_waiting = len(self._decoder.getstate()[0])
        try:
            return self._decoder.decode(chunk, final=self._is_at_end)
        except UnicodeDecodeError as error:
            # The decoder counts from the bytes that it had kept of the chunk before.
            at = self._num_read - len(chunk) - num_waiting + error.start
            raise ValueError(
                f"the text is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at}. It "
                "may be Latin-1 (Windows-1252): save it as UTF-8"
            ) from error


def _expecting(characters: str) -> str:
    return "expecting " + " or ".join(f"'{one}'" for one in characters)
