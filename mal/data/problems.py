"""The problems of a data set, described in few lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from mal.redaction import redact_text

MAX_NAMED_SUBJECTS = 5


@dataclass
class Problems:
    """Problems counted by kind; `lines` names the first few subjects of each kind."""

    subjects: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, subject: str) -> None:
        self.subjects.setdefault(kind, []).append(subject)

    def __bool__(self) -> bool:
        return bool(self.subjects)

    def lines(self, max_named: int = MAX_NAMED_SUBJECTS) -> list[str]:
        """Describe each kind in one line: count, kind and the first subjects."""
        return [
            f"{len(names)} x {kind}: {redact_text(', '.join(names[:max_named]))}"
            + (f" and {len(names) - max_named} more" if len(names) > max_named else "")
            for kind, names in self.subjects.items()
        ]
