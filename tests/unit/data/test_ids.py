from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.data.annotations import load_boxes
from mal.data.ids import (
    AMBIGUOUS,
    UNKNOWN,
    IdColumn,
    IdError,
    IdLookup,
    exact_id,
    group_of_id,
    number_of_id,
)

ids = st.integers(-(2**70), 2**70) | st.text(st.characters(codec=None, exclude_categories=()))
digits = st.from_regex(r"-?[0-9_.]{1,4}", fullmatch=True)
json_scalars = st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | digits | st.text()


@pytest.mark.parametrize(
    ("value", "one"),
    [
        (1, 1), (1.0, 1), (-0.0, 0), ("1", "1"), ("1_23", "1_23"), ("1.0", "1.0"), ("", ""),
        (2**127, 2**127), (2.0**52, 2**52),
    ],
)  # fmt: skip
def test_a_whole_number_or_text_is_an_id(value: Any, one: Any) -> None:
    found = exact_id(value)
    assert (found, type(found)) == (one, type(one))


@pytest.mark.parametrize(
    "value", [1.5, True, None, [], {}, float("nan"), float("inf"), 2.0**53, 2**128, 10**400]
)
def test_anything_else_is_no_id(value: Any) -> None:
    with pytest.raises(IdError, match="an id must be a whole number or text, got "):
        exact_id(value)


@pytest.mark.parametrize(
    ("one", "number"),
    [
        (7, 7), ("7", 7), ("007", 7), ("7.0", 7), ("-7", -7), ("7.", 7),
        ("7_0", None), ("7.5", None), ("\u0667", None), (" 7", None), ("7e0", None), ("", None),
    ],
)  # fmt: skip
def test_only_plain_digits_write_a_number(one: Any, number: int | None) -> None:
    assert number_of_id(one) == number


def lookup_of(*images: Any) -> IdLookup:
    lookup = IdLookup()
    for index, one in enumerate(images):
        lookup.add(one, index)
    return lookup


@pytest.mark.parametrize(
    ("images", "value", "found"),
    [
        pytest.param([1, 2], 2, 1, id="numbers"),
        pytest.param([1, 2], 2.0, 1, id="float"),
        pytest.param([1, 2], "2", 1, id="text of a number"),
        pytest.param([1, 2], "2.0", 1, id="text of a float"),
        pytest.param(["1", "2"], 2, 1, id="number of a text"),
        pytest.param(["1.0", "2.0"], "2", 1, id="two texts of one number"),
        pytest.param(["1_23", "12_3"], "12_3", 1, id="underscores"),
        pytest.param(["1_23", "12_3"], 123, UNKNOWN, id="no number"),
        pytest.param([1, "1"], "1", 1, id="exact value first"),
        pytest.param([1, "1"], 1, 0, id="exact number first"),
        pytest.param([1, "1"], "1.0", AMBIGUOUS, id="number and text"),
        pytest.param(["01", "1.0"], 1, AMBIGUOUS, id="two texts"),
        pytest.param([1], 1.5, UNKNOWN, id="fraction"),
        pytest.param([1], True, UNKNOWN, id="boolean"),
    ],
)
def test_an_image_is_found_by_its_exact_id_else_by_a_number_that_only_it_has(
    images: list[Any], value: Any, found: int
) -> None:
    assert lookup_of(*images).find_value(value) == found


@given(st.lists(st.integers(0, 12) | digits, unique=True, max_size=6), json_scalars)
def test_ids_that_match_are_of_one_group(images: list[Any], value: Any) -> None:
    found = lookup_of(*images).find_value(value)
    if found >= 0:
        assert group_of_id(value) == group_of_id(images[found])


@given(st.lists(ids, max_size=8), st.booleans())
def test_a_column_returns_what_it_was_given(values: list[Any], is_repetitive: bool) -> None:
    column = IdColumn([*values, *values], is_repetitive=is_repetitive)
    assert column.tolist() == [*values, *values]
    rows = np.arange(len(values))[::-1]
    assert column.rows(rows).tolist() == values[::-1]


def test_a_column_of_numbers_is_an_array() -> None:
    rows = np.array([2, 0])
    assert isinstance(IdColumn([5, 6, 7]).rows(rows), np.ndarray)
    assert IdColumn([5, "6", 7]).rows(rows).tolist() == [7, 5]


@given(st.lists(st.integers(0, 12) | digits, unique=True, max_size=6), st.lists(ids | digits))
def test_a_column_finds_what_the_lookup_finds(images: list[Any], values: list[Any]) -> None:
    lookup = lookup_of(*images)
    found_N, is_by_number_N = IdColumn(values, is_repetitive=True).found_in(lookup)
    assert found_N.tolist() == [lookup.find(value) for value in values]
    assert is_by_number_N.tolist() == [
        lookup.find(value) >= 0 and value not in images for value in values
    ]


def boxes_of(folder: Path, image_ids: list[Any], wanted: list[Any], **changes: Any) -> Any:
    path = folder / "set.json"
    images = [
        {"id": one, "file_name": f"{n}.png", "width": 20, "height": 16} | changes
        for n, one in enumerate(image_ids)
    ]
    annotations = [{"id": n, "image_id": one, "bbox": [1, 1, 8, 8]} for n, one in enumerate(wanted)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return load_boxes(path, with_masks=False)


@pytest.mark.parametrize("is_last", [False, True])
def test_boxes_of_an_id_that_two_files_have_are_left_out_and_counted(
    is_last: bool, tmp_path: Path
) -> None:
    image_ids = [2, 1, 1] if is_last else [1, 1, 2]
    boxes = boxes_of(tmp_path, image_ids, [1, 2, 1])
    assert boxes.annotation_id_N.tolist() == [1]
    assert boxes.image_of(0).id == 2
    assert boxes.num_unusable == 2
    assert boxes.problems.counts == {
        "image id of several files, their boxes are left out": 1,
        "annotation of an image id that several images have": 2,
    }


def test_an_image_that_is_listed_twice_alike_is_one(tmp_path: Path) -> None:
    boxes = boxes_of(tmp_path, [1, 1], [1], file_name="same.png")
    assert (len(boxes), len(boxes.images)) == (1, 1)


def test_an_id_of_a_good_and_a_bad_image_is_of_neither(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    good = {"id": 1, "file_name": "a.png", "width": 20, "height": 16}
    other = good | {"id": 2, "file_name": "b.png"}
    annotations = [{"id": 1, "image_id": 1, "bbox": [1, 1, 8, 8]}]
    for pair in ([good, good | {"file_name": None}], [good | {"width": "wide"}, good]):
        path.write_text(json.dumps({"images": [*pair, other], "annotations": annotations}))
        assert len(load_boxes(path, with_masks=False)) == 0


def test_annotations_of_a_bad_image_say_so(tmp_path: Path) -> None:
    boxes = boxes_of(tmp_path, [1, 2.5], [1, 2.5, 2, 3])
    assert boxes.annotation_id_N.tolist() == [0]
    assert list(boxes.problems.counts.values()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("annotation_id", "name"),
    [
        ("00000000-0000-0000-0000-000000001eef", "00000000-0000-0000-0000-000000001eef"),
        (2**100, str(2**100)), (1.0, "1"), (1.5, "1.5"), (None, "1"), ({"a": 1}, '{"a": 1}'),
        ("a\x1b[2J", "a\\x1b[2J"),
    ],
)  # fmt: skip
def test_any_annotation_id_is_a_name_and_the_box_is_used(
    annotation_id: Any, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.json"
    image = {"id": 1, "file_name": "a.png", "width": 20, "height": 16}
    annotation = {"id": annotation_id, "image_id": 1, "bbox": [1, 1, 8, 8]}
    path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    boxes = load_boxes(path, with_masks=False)
    assert boxes.name_of(0) == f"annotation {name}"
    assert boxes.select(np.array([0])).name_of(0) == f"annotation {name}"
