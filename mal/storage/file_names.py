"""How the name of an image in an annotation file may differ from the name of its file.

Names are compared part by part, never by similarity. The comparisons are tried in the order of
`COMPARISONS`; the first at which any file fits decides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

MAX_NAME_CHARS = 4096  # of a path on Linux

# Archives made on Windows keep names in the code page of their maker, without saying which.
_CODE_PAGES = (
    "utf-8", "cp932", "gbk", "cp949", "big5", "cp1252", "cp1251", "cp850", "cp852", "cp866",
)  # fmt: skip
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # of Label Studio
_LOCAL_FILES_QUERY = re.compile(r"[?&]d=([^&]*)")  # of Label Studio
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_DRIVE = re.compile(r"^[A-Za-z]:(?=/)")
_SUFFIX = re.compile(r"(?<=.)\.[A-Za-z0-9]{1,5}$")

Parts = tuple[str, ...]


class Comparison(NamedTuple):
    """A way to compare a name with the path of a file.

    Attributes:
        words: Ends the sentence "3 images were found ...".
        name_parts: The parts of the name, or None where this comparison does not apply.
        path_parts: The parts of the path of a file.
    """

    words: str
    name_parts: Callable[[str], Iterator[Parts]]
    path_parts: Callable[[Parts], Parts]


def direct_path(name: str) -> PurePosixPath | None:
    """Return the path of a name below its folder; None where it leaves the folder, or is none."""
    if not name or "\0" in name or len(name) > MAX_NAME_CHARS or is_url(name):
        return None
    text = name.replace("\\", "/")
    if text.startswith("/") or _DRIVE.match(text):
        return None
    parts: list[str] = []
    for part in text.split("/"):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return PurePosixPath(*parts) if parts else None


def leaves_folder(name: str) -> bool:
    """Whether a name is an absolute path, or climbs out of its folder."""
    is_name = "\0" not in name and len(name) <= MAX_NAME_CHARS and not is_url(name)
    return is_name and direct_path(name) is None and bool(name)


def search_key(last_part: str) -> str:
    """Return what a name and its file have in common, whatever differs; the suffix is not part."""
    folded = _folded(_UPLOAD_PREFIX.sub("", last_part, count=1))
    return _SUFFIX.sub("", folded)


def search_keys(name: str) -> set[str]:
    """Return the keys under which the file of a name may be."""
    return {search_key(parts[-1]) for parts in _forms(name)}


def search_keys_in_code_pages(name: str) -> set[str]:
    """Return the keys that a name has where an archive's reader did not know its code page."""
    return {search_key(parts[-1]) for parts in _in_code_pages(name)}


def fits(name_parts: Parts, path_parts: Parts) -> bool:
    """Whether one path ends with the other: folders may be cut off, or added, but not differ."""
    num = min(len(name_parts), len(path_parts))
    return num > 0 and name_parts[-num:] == path_parts[-num:]


def has_last_part_of(name_parts: Parts, path_parts: Parts) -> bool:
    """Whether two paths end with the same part."""
    return fits(name_parts[-1:], path_parts[-1:])


def without_suffix(part: str) -> str:
    """Return a folded last part without its suffix."""
    return _SUFFIX.sub("", _folded(part))


def is_url(name: str) -> bool:
    """Whether a name is a URL, or the content of an image as text."""
    return bool(_URL.match(name)) or name.startswith("data:")


def _forms(name: str) -> Iterator[Parts]:
    """Yield the parts of a name as it is, and with its % codes decoded."""
    text = name.strip()
    if not text or len(text) > MAX_NAME_CHARS or text.startswith("data:"):
        return
    query = _LOCAL_FILES_QUERY.search(text)
    if query is not None:
        text = unquote(query[1])
    elif (url := _URL.match(text)) is not None:
        text = re.split(r"[?#]", text[url.end() :], maxsplit=1)[0]
    for form in dict.fromkeys((text, unquote(text))):
        if parts := _parts_of(form):
            yield parts


def _parts_of(text: str) -> Parts:
    """Split a path; what is before a `..` that leaves it is unknown, and left out."""
    parts: list[str] = []
    for part in _DRIVE.sub("", text.replace("\\", "/")).split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _folded(part: str) -> str:
    """Return a part in one Unicode form, one case, without % codes and outer white space."""
    if part.isascii() and "%" not in part:
        return part.strip().lower()
    return _composed(part).casefold()


def _composed(part: str) -> str:
    return unicodedata.normalize("NFC", unquote(part)).strip()


def _in_code_pages(name: str) -> Iterator[Parts]:
    """Yield the parts as an archive's reader spells them that does not know the code page."""
    if name.isascii():
        return
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, name)
        for code_page in _CODE_PAGES:
            try:
                data = text.encode(code_page)
            except UnicodeError:
                continue
            # zipfile reads unmarked names as cp437; tarfile keeps bytes that are no UTF-8.
            for spelled in (data.decode("cp437"), data.decode("utf-8", "surrogateescape")):
                if spelled != name:
                    yield from _forms(spelled)


def _each(change: Callable[[str], str]) -> Callable[[Parts], Parts]:
    return lambda parts: tuple(map(change, parts))


def _changed(change: Callable[[str], str]) -> Callable[[str], Iterator[Parts]]:
    return lambda name: (tuple(map(change, parts)) for parts in _forms(name))


def _without_upload_prefix(parts: Parts) -> Parts:
    *folders, last = map(_folded, parts)
    return (*folders, _UPLOAD_PREFIX.sub("", last, count=1))


def _prefixed_names(name: str) -> Iterator[Parts]:
    for parts in _forms(name):
        short = _without_upload_prefix(parts)
        if short != tuple(map(_folded, parts)):
            yield short


COMPARISONS = (
    Comparison("by the last part of their names", _forms, lambda parts: parts),
    Comparison(
        "by names that differ in % codes, white space or Unicode form",
        _changed(_composed), _each(_composed),
    ),
    Comparison("by names in other capitals", _changed(_folded), _each(_folded)),
    Comparison("by names without the prefix of an upload", _prefixed_names, _each(_folded)),
    Comparison(
        "by names that lack the prefix of an upload", _changed(_folded), _without_upload_prefix
    ),
    Comparison("by names in another encoding", _in_code_pages, lambda parts: parts),
)  # fmt: skip
