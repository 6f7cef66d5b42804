"""Ids of images, annotations and categories: exact values, compared in one way everywhere.

An id is a whole number or a text. 1.0 is the number 1, as pandas writes it. A text stays text:
'1_23' is not '12_3'. A fraction, a boolean or null is no id.

An annotation's `image_id` is looked up by its exact value. If no image has it, a text of digits
('7', '007', '7.0') matches the image of that number, and a number the image of that text, provided
that exactly one image fits. An id of two different images matches nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mal.shown import shown

Id = int | str

UNKNOWN: Final = -1
AMBIGUOUS: Final = -2
UNUSABLE_IMAGE: Final = -3

MAX_ID_BITS = 128  # a UUID as a number
_MAX_INT64 = 2**63 - 1
_MAX_EXACT_FLOAT = 2**53  # larger floats have lost digits
_NUMBER = re.compile(r"-?\d{1,38}(\.0*)?", re.ASCII)
_ENCODING_ERRORS = "surrogatepass"  # JSON text can hold code points that UTF-8 cannot
_INT64_KIND, _TEXT_KIND, _LONG_KIND = range(3)


class IdError(ValueError):
    """A value that is no id."""


def exact_id(value: Any) -> Id:
    """Return the id that a JSON value is.

    Raises:
        IdError: The value is neither a whole number nor text.
    """
    if type(value) is int and value.bit_length() <= MAX_ID_BITS:
        return value
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT_FLOAT:
        return int(value)
    raise IdError(f"an id must be a whole number or text, got {shown(value)}")


def number_of_id(one: Id) -> int | None:
    """Return the whole number that an id is or writes in digits; None for any other text."""
    if isinstance(one, int):
        return one
    return int(one.partition(".")[0]) if _NUMBER.fullmatch(one) else None


def group_of_id(value: Any) -> Id | None:
    """Return what ids that may match have in common; None for a value that is no id.

    Whoever splits a file by images keeps the images of a group, and their annotations, together:
    then a part matches as the whole file does.
    """
    try:
        one = exact_id(value)
    except IdError:
        return None
    number = number_of_id(one)
    return one if number is None else number


class IdColumn(Sequence[Id]):
    """Ids without an object each: numbers in an array, texts one after the other in a buffer.

    Args:
        is_repetitive: Keep equal texts once. For columns of references.
    """

    def __init__(self, values: Iterable[Id] = (), *, is_repetitive: bool = False) -> None:
        self._numbers = array("q")  # an id, or the index of a text
        self._kinds = bytearray()
        self._texts = bytearray()
        self._text_ends = array("q", [0])
        self._index_of_text: dict[str, int] | None = {} if is_repetitive else None
        for value in values:
            self.append(value)

    def append(self, value: Id) -> None:
        if isinstance(value, int) and -_MAX_INT64 <= value <= _MAX_INT64:
            self._numbers.append(value)
            self._kinds.append(_INT64_KIND)
            return
        self._kinds.append(_TEXT_KIND if isinstance(value, str) else _LONG_KIND)
        self._numbers.append(self._index_of(str(value)))

    def _index_of(self, text: str) -> int:
        index = len(self._text_ends) - 1
        if self._index_of_text is not None:
            known = self._index_of_text.setdefault(text, index)
            if known != index:
                return known
        self._texts += text.encode("utf-8", _ENCODING_ERRORS)
        self._text_ends.append(len(self._texts))
        return index

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        """Return an id; for an array of rows, the column of these."""
        if isinstance(index, np.ndarray):
            return self._select(index)
        if isinstance(index, slice):
            return self._select(np.arange(len(self))[index])
        number, kind = self._numbers[index], self._kinds[index]
        if kind == _INT64_KIND:
            return number
        text = self._texts[self._text_ends[number] : self._text_ends[number + 1]].decode(
            "utf-8", _ENCODING_ERRORS
        )
        return text if kind == _TEXT_KIND else int(text)

    def _select(self, rows: NDArray[np.int64]) -> IdColumn:
        chosen = IdColumn()
        chosen._numbers = array("q", np.asarray(self._numbers, dtype=np.int64)[rows].tobytes())
        chosen._kinds = bytearray(np.frombuffer(self._kinds, dtype=np.uint8)[rows].tobytes())
        chosen._texts, chosen._text_ends = self._texts, self._text_ends
        return chosen

    def tolist(self) -> list[Id]:
        return list(self)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | IdColumn:
        """Return these rows: as an array where the whole column is of 64-bit numbers."""
        if any(self._kinds):
            return self._select(rows)
        return np.asarray(self._numbers, dtype=np.int64)[rows]

    def found_in(self, lookup: IdLookup) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Look up all ids, each different one once.

        Returns:
            What `lookup.find` returns by row, and whether that was found by number only.
        """
        kinds = np.frombuffer(self._kinds, dtype=np.uint8).astype(np.int64)
        numbers = np.asarray(self._numbers, dtype=np.int64)
        index_N = np.full(len(self), UNKNOWN, dtype=np.int64)
        is_by_number_N = np.zeros(len(self), dtype=np.bool_)
        for kind in np.unique(kinds).tolist():
            rows = np.flatnonzero(kinds == kind)
            _, first, inverse = np.unique(numbers[rows], return_index=True, return_inverse=True)
            ids = [self[row] for row in rows[first].tolist()]
            index_N[rows] = np.array([lookup.find(one) for one in ids], dtype=np.int64)[inverse]
            is_by_number_N[rows] = np.array([one not in lookup for one in ids])[inverse]
        return index_N, is_by_number_N & (index_N >= 0)


class IdLookup:
    """Finds the index of the image, or of whatever else, that an id stands for."""

    def __init__(self) -> None:
        self._index_of: dict[Id, int] = {}
        self._texts_of_number: dict[int, list[str]] = {}

    def __contains__(self, one: Id) -> bool:
        return one in self._index_of

    def add(self, one: Id, index: int) -> None:
        """Add an id with its index, or with what `find` is to return for it."""
        if isinstance(one, str) and one not in self._index_of:
            number = number_of_id(one)
            if number is not None:
                self._texts_of_number.setdefault(number, []).append(one)
        self._index_of[one] = index

    def find(self, one: Id) -> int:
        """Return an index, UNKNOWN, AMBIGUOUS, or what else was added for the id."""
        exact = self._index_of.get(one)
        if exact is not None:
            return exact
        number = number_of_id(one)
        if number is None:
            return UNKNOWN
        candidates: list[Id] = [*self._texts_of_number.get(number, ())]
        if number in self._index_of:
            candidates.append(number)
        if len(candidates) > 1:
            return AMBIGUOUS
        return self._index_of[candidates[0]] if candidates else UNKNOWN

    def find_value(self, value: Any) -> int:
        """Return what `find` returns for any JSON value; UNKNOWN for one that is no id."""
        try:
            return self.find(exact_id(value))
        except IdError:
            return UNKNOWN
