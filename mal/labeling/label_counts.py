"""How many boxes of a label file got a mask, and why the others have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mal.errors import MalError

EMPTY_REASON = "empty_reason"
_MOST = 0.5
LEFT_OUT = "left out"
_UNKNOWN = "unknown"  # labels of an earlier version


class MostlyEmptyError(MalError):
    """Most boxes have an empty mask: the labels are written, and are not worth using."""


@dataclass(frozen=True)
class LabelCounts:
    """The content of a label file in numbers.

    Attributes:
        num_boxes: Annotations, those that cannot be used included.
        num_masks: Annotations whose mask has a pixel.
        num_kept: Masks of the input that were kept (`inference.keep`).
        empty_by_reason: Number of empty masks by `empty_reason`.
    """

    num_boxes: int = 0
    num_masks: int = 0
    num_kept: int = 0
    empty_by_reason: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_empty(self) -> int:
        """Number of annotations without a mask."""
        return self.num_boxes - self.num_masks

    @property
    def is_mostly_empty(self) -> bool:
        """Whether more than half of the annotations have no mask."""
        return self.num_empty > _MOST * self.num_boxes

    def reasons(self) -> str:
        """Name the reasons and their numbers, the most frequent first."""
        ordered = sorted(self.empty_by_reason.items(), key=lambda item: -item[1])
        return ", ".join(f"{count:,} {reason}" for reason, count in ordered)

    def line(self) -> str:
        """Say how many boxes have a mask, and why the others have none."""
        if not self.num_boxes:
            return "none, because the list 'annotations' is empty"
        kept = f" ({self.num_kept:,} kept from the input)" if self.num_kept else ""
        line = f"{self.num_masks:,} of {self.num_boxes:,} boxes have a mask{kept}"
        return f"{line}; {self.num_empty:,} empty: {self.reasons()}" if self.num_empty else line

    def metrics(self) -> dict[str, int]:
        """Return the numbers by name, for `status.json` and the metrics of a step."""
        return {
            "num_boxes": self.num_boxes,
            "num_masks": self.num_masks,
            "num_empty": self.num_empty,
            **{
                f"num_empty_{reason.replace(' ', '_')}": count
                for reason, count in self.empty_by_reason.items()
            },
        }

    def problem(self, labels: object) -> MostlyEmptyError | None:
        """Return the error for a file whose masks are mostly empty; None for others.

        Args:
            labels: Where the labels are.
        """
        if not self.is_mostly_empty:
            return None
        return MostlyEmptyError(
            f"{self.num_empty:,} of {self.num_boxes:,} boxes have an empty mask: {self.reasons()}. "
            f"The labels are in {labels}. Fix the boxes or images, or set "
            "inference.allow_empty=true."
        )


class LabelCounter:
    """Counts the labels of a file as they pass."""

    def __init__(self) -> None:
        self._num_boxes = self._num_masks = self._num_kept = 0
        self._reasons: Counter[str] = Counter()

    def passing(self, annotations: Iterator[Any]) -> Iterator[Any]:
        """Yield annotations of a label file, and count them."""
        for annotation in annotations:
            self.add(annotation)
            yield annotation

    def add(self, annotation: Any) -> None:
        """Count one annotation of a label file."""
        self._num_boxes += 1
        if isinstance(annotation, dict) and annotation.get("area"):
            self._num_masks += 1
            self._num_kept += annotation.get("mask_source") == "input"
        else:
            label = annotation if isinstance(annotation, dict) else {EMPTY_REASON: LEFT_OUT}
            self._reasons[str(label.get(EMPTY_REASON, _UNKNOWN))] += 1

    def counts(self) -> LabelCounts:
        """Return the numbers of what has passed."""
        return LabelCounts(self._num_boxes, self._num_masks, self._num_kept, dict(self._reasons))
