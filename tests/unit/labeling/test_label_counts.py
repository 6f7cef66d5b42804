"""The line about a label file says why a set got no masks."""

from __future__ import annotations

from mal.labeling.label_counts import LabelCounts


def test_a_set_without_annotations_is_named_as_such() -> None:
    assert LabelCounts().line() == "none, because the list 'annotations' is empty"
    assert LabelCounts().problem("labels.json") is None


def test_reasons_are_listed_by_number() -> None:
    counts = LabelCounts(10, 4, empty_by_reason={"crowd": 1, "left out": 5})
    assert counts.line() == "4 of 10 boxes have a mask; 6 empty: 5 left out, 1 crowd"
    assert "6 of 10 boxes have an empty mask" in str(counts.problem("labels.json"))
