"""The problems of a data set, described in few lines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from mal.redaction import redact_text
from mal.shown import shown

__all__ = ["MAX_NAMED_SUBJECTS", "NOTE_KINDS", "FieldError", "Problems", "shown"]

MAX_NAMED_SUBJECTS = 5
_MAX_NAMED_CHARS = 300
# A million bad boxes are one line: no more subjects than a reader looks at are kept.
MAX_KEPT_SUBJECTS = 100
_MAX_SUBJECT_CHARS = 1000  # a doubt about the whole set is long

CROWD = "crowd, neither trained nor measured"
CROWD_REMEDY = "Some tools write iscrowd 1 for every RLE mask of a single object: set it to 0."
ROTATED = "box with attributes.rotation, taken as an upright box, which it is not"
BOX_OF_SEGMENTATION = "annotation without bbox, the box of its segmentation is taken"
ID_BY_NUMBER = "annotation whose image_id is found by its number: one is text, the other is not"
SIZE_OF_FILE = "image without width and height, those of its file are taken"
IMAGE_TWICE = "image listed twice with the same id, file_name and size"
NAME_OF_URL = "image without file_name, the last part of its coco_url is taken"
NOTE_KINDS = frozenset(
    {CROWD, ROTATED, BOX_OF_SEGMENTATION, ID_BY_NUMBER, SIZE_OF_FILE, IMAGE_TWICE, NAME_OF_URL}
)
"""Kinds of which every annotation or image is used, or left out on purpose."""


class FieldError(ValueError):
    """A field of an entry that cannot be used.

    Attributes:
        kind: What such entries have in common.
        subject: What follows the entry's name: `.bbox is [1, 2]`.
        remedy: What to do, as sentences; '' if the kind says it all.
    """

    def __init__(self, kind: str, subject: str, remedy: str = "") -> None:
        self.kind = kind
        self.subject = subject
        self.remedy = remedy
        super().__init__(f"{kind}: {subject}. {remedy}".rstrip())


@dataclass
class Problems:
    """Problems counted by kind.

    Attributes:
        subjects: The first MAX_KEPT_SUBJECTS of each kind.
        counts: How many there are of each kind.
        remedies: What the user can do, by kind.
    """

    subjects: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, subject: str, remedy: str = "") -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.subjects.setdefault(kind, [])
        if len(kept) < MAX_KEPT_SUBJECTS:
            kept.append(shown(subject, _MAX_SUBJECT_CHARS))
        if remedy:
            self.remedies[kind] = remedy

    def add_field(self, entry_name: str, error: FieldError) -> None:
        """Add a field of an entry: `annotations[3]` and `.bbox is null`."""
        self.add(error.kind, f"{entry_name}{error.subject}", error.remedy)

    def update(self, other: Problems, kinds: frozenset[str] | None = None) -> None:
        """Add the problems of another set, all or those of some kinds."""
        for kind, subjects in other.subjects.items():
            if kinds is None or kind in kinds:
                kept = self.subjects.setdefault(kind, [])
                kept += subjects[: MAX_KEPT_SUBJECTS - len(kept)]
                self.counts[kind] = self.counts.get(kind, 0) + other.counts[kind]
        self.remedies |= other.remedies

    def copy(self) -> Self:
        return copy.deepcopy(self)

    def __bool__(self) -> bool:
        return bool(self.subjects)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the kinds."""
        return iter(self.subjects)

    def lines(self, max_named: int = MAX_NAMED_SUBJECTS) -> list[str]:
        """Describe each kind in one line: count, kind, the first subjects, and what to do."""
        return [
            self._line(kind, _first_that_fit(subjects[:max_named]))
            for kind, subjects in self.subjects.items()
        ]

    def _line(self, kind: str, named: list[str]) -> str:
        count, remedy = self.counts[kind], self.remedies.get(kind, "")
        more = f" and {count - len(named)} more" if count > len(named) else ""
        return f"{count} x {kind}: {redact_text(', '.join(named))}{more}" + (
            f". {remedy}" if remedy else ""
        )


def _first_that_fit(subjects: list[str]) -> list[str]:
    """Return the first subjects, fewer where they are long: the line must be read."""
    chosen = subjects[:1]
    for subject in subjects[1:]:
        if sum(map(len, chosen)) + len(subject) > _MAX_NAMED_CHARS:
            break
        chosen.append(subject)
    return chosen
