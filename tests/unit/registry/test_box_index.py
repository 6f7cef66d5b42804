"""Boxes of two annotation files, compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mal.errors import AnnotationError, ArtifactError
from mal.registry.box_index import BoxChanges, BoxIndex, count_changes, index_boxes

Box = dict[str, Any]


def box(number: int, **fields: Any) -> Box:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [number, 2, 3, 4]} | fields


def index_of(
    folder: Path,
    *boxes: Box,
    images: tuple[tuple[int, str], ...] = ((1, "a.png"), (2, "b.png")),
    categories: tuple[tuple[int, str], ...] = ((1, "cat"), (2, "dog")),
) -> BoxIndex:
    path = folder / "boxes.json"
    document = {
        "annotations": list(boxes),
        "categories": [{"id": i, "name": name} for i, name in categories],
        "images": [{"id": i, "file_name": name} for i, name in images],
    }
    path.write_text(json.dumps(document))
    index, file_names = index_boxes(path)
    assert file_names == [name for _, name in images]
    return index


BEFORE = (box(1), box(2), box(3, image_id=2))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(BEFORE, (0, 0, 0), id="nothing"),
        pytest.param(BEFORE[::-1], (0, 0, 0), id="another order"),
        pytest.param((*BEFORE, box(4), box(5)), (2, 0, 0), id="two new"),
        pytest.param(BEFORE[:1], (0, 0, 2), id="two removed"),
        pytest.param((box(1, bbox=[0, 0, 9, 9]), *BEFORE[1:]), (0, 1, 0), id="moved"),
        pytest.param((box(1, image_id=2), *BEFORE[1:]), (0, 1, 0), id="on another image"),
        pytest.param((box(1, category_id=2), *BEFORE[1:]), (0, 1, 0), id="another category"),
        pytest.param((box(1, iscrowd=1), *BEFORE[1:]), (0, 1, 0), id="a crowd now"),
        pytest.param((box(1, points=[[1, 1, 1]]), *BEFORE[1:]), (0, 1, 0), id="a point more"),
        pytest.param((box(1, points=[]), *BEFORE[1:]), (0, 0, 0), id="no points"),
        pytest.param((box(1, points=None), *BEFORE[1:]), (0, 0, 0), id="points of null"),
        pytest.param((box(1, points=5), *BEFORE[1:]), (0, 1, 0), id="points of a number"),
        pytest.param((box(1, points=[5, "x"]), *BEFORE[1:]), (0, 1, 0), id="broken points"),
        pytest.param((box(1, bbox=[10**400] * 4), *BEFORE[1:]), (0, 1, 0), id="a huge number"),
        pytest.param((box(1, note="seen", area=7), *BEFORE[1:]), (0, 0, 0), id="a remark"),
        pytest.param((box(1, bbox=[1.0, 2.0, 3.0, 4]), *BEFORE[1:]), (0, 0, 0), id="1 is 1.0"),
        pytest.param((box(1, image_id=1.0), *BEFORE[1:]), (0, 0, 0), id="image 1 is 1.0"),
        pytest.param((box(1, image_id="1"), *BEFORE[1:]), (0, 0, 0), id="image 1 is '1'"),
        pytest.param((box(1, image_id=1.5), *BEFORE[1:]), (0, 1, 0), id="a fraction is no image"),
        pytest.param((box(1, iscrowd="0"), *BEFORE[1:]), (0, 0, 0), id="no crowd as text"),
        pytest.param(tuple(b | {"id": b["id"] + 90} for b in BEFORE), (0, 0, 0), id="renumbered"),
        pytest.param((*BEFORE, box(1)), (1, 0, 0), id="the same box twice"),
        pytest.param((box(1, bbox=[9] * 4), box(7), *BEFORE[2:]), (1, 1, 1), id="all at once"),
        pytest.param((), (0, 0, 3), id="none left"),
    ],
)
def test_boxes_are_compared_by_what_they_are(
    after: tuple[Box, ...], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    before = index_of(tmp_path, *BEFORE)
    assert count_changes(before, index_of(tmp_path, *after)) == BoxChanges(*expected)


def test_points_are_compared_as_numbers(tmp_path: Path) -> None:
    before = index_of(tmp_path, box(1, points=[[1, 2.0, 1], [3, 4, 0]]))
    for points, num_changed in (
        ([[1.0, 2, 1.0], [3, 4, 0]], 0),
        ([[3, 4, 0], [1, 2, 1]], 1),
        ([[1, 2, 1]], 1),
    ):
        after = index_of(tmp_path, box(1, points=points))
        assert count_changes(before, after) == BoxChanges(0, num_changed, 0)


def test_new_numbers_of_images_and_categories_change_no_box(tmp_path: Path) -> None:
    before = index_of(tmp_path, box(1), box(2, image_id=2, category_id=2))
    after = index_of(
        tmp_path,
        box(1, image_id=8, category_id=6),
        box(2, image_id=7, category_id=5),
        images=((7, "b.png"), (8, "a.png")),
        categories=((5, "dog"), (6, "cat")),
    )
    assert count_changes(before, after) == BoxChanges(0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up_and_turn_round_with_the_direction(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    some = [box(int(n), bbox=[int(rng.integers(3)), 1, 1, 1]) for n in rng.integers(1, 9, 12)]
    others = [box(int(n), bbox=[int(rng.integers(3)), 1, 1, 1]) for n in rng.integers(1, 9, 9)]
    before, after = index_of(tmp_path, *some), index_of(tmp_path, *others)
    there, back = count_changes(before, after), count_changes(after, before)
    assert len(after) - len(before) == there.num_new - there.num_removed
    assert (there.num_new, there.num_changed) == (back.num_removed, back.num_changed)


def test_an_index_survives_its_file(tmp_path: Path) -> None:
    index = index_of(tmp_path, *BEFORE)
    index.write(tmp_path / "index.npz")
    read = BoxIndex.read(tmp_path / "index.npz")
    assert read.identity_N.tolist() == index.identity_N.tolist()
    assert read.content_N.tolist() == index.content_N.tolist()


def test_what_is_no_index_is_refused_and_no_pickle_is_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "index.npz", identity_N=np.array([{}]), content_N=np.array([1]))
    with pytest.raises(ArtifactError, match="is not an index of boxes"):
        BoxIndex.read(tmp_path / "index.npz")


@pytest.mark.parametrize(
    "text", ['{"annotations": [{"id": 1', "nothing of the kind"], ids=["cut short", "no JSON"]
)
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"Cannot read the annotation file .*boxes\.json"):
        index_boxes(tmp_path / "boxes.json")


def test_entries_that_are_no_boxes_are_counted_and_not_choked_on(tmp_path: Path) -> None:
    assert len(index_of(tmp_path, {"id": "x"}, {}, {"bbox": "left", "image_id": [1]})) == 3


def test_a_box_whose_image_id_several_files_have_is_on_none_of_them(tmp_path: Path) -> None:
    before = index_of(tmp_path, box(1), images=((1, "a.png"), (2, "b.png")))
    after = index_of(tmp_path, box(1), images=((1, "a.png"), (1, "b.png")))
    assert count_changes(before, after) == BoxChanges(0, 1, 0)
