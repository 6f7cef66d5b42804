"""Recognises what a file holds by its first bytes, whatever its name."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mal.errors import AnnotationError

HEAD_BYTES = 1 << 16

GZIP_MAGIC, ZIP_MAGIC, TAR_MAGIC = b"\x1f\x8b", b"PK\x03\x04", b"ustar"
_TAR_MAGIC_START = 257

# The first bytes of files that hold no annotations: what they are, and what to do.
_FOREIGN: Sequence[tuple[re.Pattern[bytes], str, str]] = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, remedy)
    for pattern, what, remedy in (
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself",
         "Run `git lfs pull` where it was cloned."),
        (rb"\s*(<!--.{0,500}?-->\s*)?<(!doctype html|html|head|body)\b", "a web page (HTML)",
         "The download failed or needs a login: download it again."),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP", "an image",
         "Give the annotations, and the images by their folder."),
        (rb".{4}ftyp(avif|heic|heix|mif1)", "an image",
         "Give the annotations, and the images by their folder."),
        (rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01\xba|\0\0\x01\xb3|FLV\x01", "a video",
         "Give annotations, and images that were cut from it."),
        (rb"%PDF", "a PDF document", "Give the annotations."),
        (rb"BZh[1-9]", "a bzip2 archive", "Unpack it and give the JSON."),
        (rb"\xfd7zXZ", "an xz archive", "Unpack it and give the JSON."),
        (rb"7z\xbc\xaf", "a 7-Zip archive", "Unpack it and give the JSON."),
        (rb"Rar!", "a RAR archive", "Unpack it and give the JSON."),
        (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", "Unpack it and give the JSON."),
        (rb"PAR1", "a Parquet table", "Export it as COCO JSON."),
        (rb"SQLite format 3", "an SQLite database", "Export it as COCO JSON."),
        (rb"\x89HDF", "an HDF5 file", "Export it as COCO JSON."),
        (rb"\x93NUMPY", "a NumPy array", "Export it as COCO JSON."),
        (rb"\x80[\x02-\x05]", "a Python pickle, which is never read", "Export it as COCO JSON."),
    )
]  # fmt: skip

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[\[\]{}]', re.DOTALL)
_MAX_DEPTH = 4
_BOMS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Without a mark: how ASCII characters lie in the first bytes.
_WIDE_TEXT = (
    (re.compile(rb"(?:[\t\n\r -~]\0){4}"), "utf-16-le"),
    (re.compile(rb"(?:\0[\t\n\r -~]){4}"), "utf-16-be"),
)
_YOLO_LINE = re.compile(r"\s*\d+(\.0+)?([ \t]+[-+]?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)
_KITTI_LINE = re.compile(
    r"\s*[^\s\d,{}\[\]<\"][^\s,{}\"]*([ \t]+[-+]?[\d.]+(e[-+]?\d+)?){14,15}\s*"
)


@dataclass(frozen=True)
class Outline:
    """The keys in the first bytes of a JSON file.

    Attributes:
        keys: Keys by the brackets around them: `{` for those of the file's object, `[{` for those
            of objects in the file's list.
    """

    keys: Mapping[str, frozenset[str]]

    def has(self, brackets: str, *names: str) -> bool:
        """Return whether all of these keys occur inside these brackets."""
        return set(names) <= self.keys.get(brackets, frozenset())

    def has_any(self, brackets: str, *names: str) -> bool:
        """Return whether one of these keys occurs inside these brackets."""
        return bool(self.keys.get(brackets, frozenset()) & set(names))


def read_head(path: Path, num_bytes: int = HEAD_BYTES) -> bytes:
    """Return the first bytes of a file.

    Raises:
        AnnotationError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise AnnotationError(
            f"Cannot read the annotation file {path}: {error.strerror}. Check the path."
        ) from error


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise an error that names a file which holds no annotations.

    Raises:
        AnnotationError: The file is empty, or of a known kind without annotations.
    """
    if not head.strip():
        what = "blank" if head else "empty (0 bytes)"
        raise AnnotationError(f"Cannot use {path}: the file is {what}. Copy or export it again.")
    for pattern, what, remedy in _FOREIGN:
        if pattern.match(head):
            raise AnnotationError(f"Cannot use {path} as annotations: it is {what}. {remedy}")


def wide_encoding_of(head: bytes) -> str:
    """Return the encoding of a text in UTF-16 or UTF-32; '' for any other content."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    for pattern, encoding in _WIDE_TEXT:
        if pattern.match(head):
            return encoding
    return ""


def archive_kind_of(head: bytes) -> str:
    """Return zip or tar for an archive of files; '' for any other content."""
    if head.startswith(ZIP_MAGIC):
        return "zip"
    return "tar" if head[_TAR_MAGIC_START:].startswith(TAR_MAGIC) else ""


def text_of(head: bytes) -> str:
    """Decode first bytes; what is not UTF-8 becomes a replacement character."""
    return head.decode("utf-8-sig", "replace")


def outline_of(text: str) -> Outline:
    """Read the keys of the beginning of a JSON text, which may stop anywhere."""
    keys: dict[str, set[str]] = defaultdict(set)
    brackets = ""
    for token in _TOKEN.finditer(text):
        char = token[0][0]
        if char in "{[":
            brackets += char
            keys[brackets[:_MAX_DEPTH]].update()
        elif char in "}]":
            brackets = brackets[:-1]
        elif token[1] and len(brackets) <= _MAX_DEPTH:
            keys[brackets].add(token[0][1:].partition('"')[0])
    return Outline({key: frozenset(names) for key, names in keys.items()})


def are_json_lines(text: str) -> bool:
    """Return whether a text begins with two JSON values in a row."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return False
    return text[end:].lstrip()[:1] in ("{", "[")


def is_yolo_text(text: str) -> bool:
    """Return whether the first line has a class number and at least four numbers."""
    return bool(_YOLO_LINE.fullmatch(_first_line(text)))


def is_kitti_text(text: str) -> bool:
    """Return whether the first line has a class name and 14 or 15 numbers."""
    return bool(_KITTI_LINE.fullmatch(_first_line(text)))


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")
