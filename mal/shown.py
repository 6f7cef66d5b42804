"""Names and values of files that others wrote, as text that is safe to print.

A file name may hold escape codes of a terminal, a line break that fakes a line of the log, half a
surrogate pair that no encoding can write, or the whole image as base64.
"""

from __future__ import annotations

from collections.abc import Iterable

from mal.redaction import redact_text

MAX_SHOWN_CHARS = 120

_NUM_LAST_CHARS = 24
_MAX_ITEMS = 6
_MAX_DEPTH = 4
_MAX_DIGITS = 40
_BITS_PER_DIGIT = 3.3219280948873626


def shown(value: object, max_chars: int = MAX_SHOWN_CHARS, *, quoted: bool = False) -> str:
    """Return a name or value in one short line of printable characters.

    Control characters and lone surrogates are escaped. Of a long text the start and the end stay,
    because the end of a file name is its suffix. Anything but text is shown as JSON.

    Args:
        value: What a file holds.
        max_chars: The longest result, apart from the count of characters behind a cut text.
        quoted: Put text in quotes, where the reader must see that it is text: '1' is not 1.
    """
    if isinstance(value, str):
        text = _cut(value, max_chars)
        return f"'{text}'" if quoted else text
    return _cut(_json_from(value, _MAX_DEPTH), max_chars)


def printable(text: str) -> str:
    """Escape control characters and lone surrogates of a whole message, and remove secrets.

    Line breaks stay.
    """
    text = redact_text(text)
    return text if text.isprintable() else "".join(c if c in "\n\t" else _escaped(c) for c in text)


def _cut(text: str, max_chars: int) -> str:
    """Escape, shorten, and remove secrets: of a URL that is cut, the signature would stay.

    Escaping makes text longer: only what may stay is escaped.
    """
    text = redact_text(text)
    if len(text) <= max_chars and text.isprintable():
        return text
    if len(text) <= max_chars and len(escaped := _escape_all(text)) <= max_chars:
        return escaped
    num_last = min(_NUM_LAST_CHARS, max_chars // 4)
    first = _escape_all(text[:max_chars])[: max_chars - num_last - 3]
    last = _escape_all(text[-num_last:])[-num_last:]
    return f"{first}...{last} ({len(text)} characters)"


def _escape_all(text: str) -> str:
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def _json_from(value: object, depth: int) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return _digits_of(value)
    if isinstance(value, str):
        return f'"{_cut(value, MAX_SHOWN_CHARS // 2)}"'
    if isinstance(value, dict):
        pairs = (
            f"{_json_from(key, depth - 1)}: {_json_from(item, depth - 1)}"
            for key, item in value.items()
        )
        return f"{{{_joined(pairs, depth)}}}"
    if isinstance(value, list | tuple):
        return f"[{_joined((_json_from(item, depth - 1) for item in value), depth)}]"
    return repr(value)


def _joined(items: Iterable[str], depth: int) -> str:
    if depth <= 0:
        return "..."
    first: list[str] = []
    for item in items:
        if len(first) == _MAX_ITEMS:
            first.append("...")
            break
        first.append(item)
    return ", ".join(first)


def _digits_of(number: int) -> str:
    """Return a number; Python refuses to write one of more than 4,300 digits."""
    num_digits = int(number.bit_length() / _BITS_PER_DIGIT) + 1
    return str(number) if num_digits <= _MAX_DIGITS else f"a number of {num_digits} digits"
