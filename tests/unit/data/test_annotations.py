from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.data.annotations import Problems, load_boxes
from mal.data.problems import CROWD, MAX_KEPT_SUBJECTS, NOTE_KINDS
from mal.errors import AnnotationError

INFINITY = float("inf")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def document(**changes: Any) -> dict[str, Any]:
    """Two 20 x 16 images, one good box on the first."""
    good: dict[str, Any] = {
        "images": [image(1), image(2)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [annotation(1)],
    }
    return good | changes


def image(number: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 20, "height": 16} | changes


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9]} | changes


def written(folder: Path, content: Any) -> Path:
    path = folder / "set.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotations")


@given(
    st.sampled_from(["id", "image_id", "category_id", "bbox", "iscrowd", "segmentation", ""]),
    json_values,
)
def test_any_annotation_is_a_box_or_a_named_problem(
    shared_folder: Path, key: str, value: Any
) -> None:
    entry = annotation(2, **{key: value}) if key else value
    path = written(shared_folder, document(annotations=[annotation(1), entry]))
    boxes = load_boxes(path, with_masks=True)
    num_left_out = sum(
        count for kind, count in boxes.problems.counts.items() if kind not in NOTE_KINDS
    )
    assert len(boxes) + num_left_out == 2
    assert boxes.annotation_id_N[0] == 1


@given(st.sampled_from(["id", "file_name", "width", "height", ""]), json_values)
def test_any_image_is_an_image_or_a_named_problem(
    shared_folder: Path, key: str, value: Any
) -> None:
    entry = image(2, **{key: value}) if key else value
    boxes = load_boxes(written(shared_folder, document(images=[image(1), entry])), with_masks=False)
    assert len(boxes.images) + len(boxes.problems.lines()) == 2


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        pytest.param({"bbox": [1, 1, 0, 5]}, "box of zero or negative size", id="zero width"),
        pytest.param({"bbox": [1, 1, 5, -1]}, "box of zero or negative size", id="negative"),
        pytest.param({"bbox": [20, 1, 5, 5]}, "box outside its image", id="right of it"),
        pytest.param({"bbox": [-5, 1, 5, 5]}, "box outside its image", id="left of it"),
        pytest.param({"bbox": [0, 0, 81, 5]}, "box far larger than its image", id="huge"),
        pytest.param({"image_id": 9}, "annotation of an unknown image", id="unknown image"),
        pytest.param({"category_id": 9}, "annotation of an unknown category", id="category"),
        pytest.param({"iscrowd": 1}, CROWD, id="crowd"),
    ],
)
def test_an_annotation_that_is_not_used_is_counted_and_named(
    bad: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    entries = [annotation(1), annotation(2, **bad), annotation(3)]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=False)
    ((told, subjects),) = boxes.problems.subjects.items()
    assert told.startswith(kind)
    assert len(subjects) == 1
    assert "annotation 2" in subjects[0]
    assert boxes.is_crowd_N.tolist() == ([False, True, False] if kind == CROWD else [False, False])


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        pytest.param(
            {"bbox": [1, 1, 5]},
            "1 x bbox that is not four numbers: annotations[1].bbox is [1, 1, 5]. Write [x, y,",
            id="three numbers",
        ),
        pytest.param(
            {"bbox": [1, 1, 5, 5, 30.0]},
            "1 x bbox of 5 numbers: annotations[1].bbox is [1, 1, 5, 5, 30.0]. Rotated boxes are "
            "not taken",
            id="rotated",
        ),
        pytest.param(
            {"bbox": ["1,5", "1", "5", "5"]},
            '1 x bbox that is not four numbers: annotations[1].bbox is ["1,5", "1", "5", "5"]. '
            "Write a decimal point.",
            id="decimal comma",
        ),
        pytest.param(
            {"bbox": {"x": 1, "y": 2}},
            '1 x bbox that is an object: annotations[1].bbox is {"x": 1, "y": 2}. Write [x, y,',
            id="object",
        ),
        pytest.param(
            {"bbox": ["1_0", 1, 5, 5]}, "1 x bbox that is not four numbers: ", id="underscore"
        ),
        pytest.param(
            {"bbox": [True, 1, 5, 5]}, "1 x bbox that is not four numbers: ", id="boolean"
        ),
        pytest.param(
            {"bbox": [1, 1, 5, INFINITY]}, "1 x bbox that is not four finite numbers", id="infinite"
        ),
        pytest.param({"bbox": "1234"}, "1 x bbox that is not four numbers", id="text"),
        pytest.param(
            {"bbox": None},
            "1 x annotation without bbox, segmentation or points: annotations[1].bbox is null.",
            id="null",
        ),
        pytest.param(
            {"bbox": [1, 1, 5, 10**400]},
            "1 x bbox of numbers beyond 1e+09: annotations[1].bbox is [1, 1, 5, a number of 401 "
            "digits]",
            id="400 digits",
        ),
        pytest.param(
            {"image_id": None},
            "1 x image_id that is neither a whole number nor text: annotations[1].image_id is null",
            id="no image",
        ),
        pytest.param(
            {"image_id": 1.25},
            "1 x image_id that is neither a whole number nor text: annotations[1].image_id is 1.25",
            id="fraction",
        ),
        pytest.param(
            {"image_id": True}, "1 x image_id that is neither a whole number nor", id="boolean id"
        ),
        pytest.param(
            {"image_id": 2**130}, "1 x image_id that is neither a whole number nor", id="130 bits"
        ),
        pytest.param(
            {"image_id": 2.0**60}, "1 x image_id that is neither a whole number nor", id="2.0**60"
        ),
        pytest.param(
            {"category_id": "disc"},
            "1 x category_id that is not a whole number: annotations[1].category_id is 'disc'. "
            "Write the id of a category",
            id="name as category",
        ),
        pytest.param(
            {"category_id": 1.5}, "1 x category_id that is not a whole number", id="half a category"
        ),
        pytest.param(
            {"iscrowd": "maybe"},
            "1 x iscrowd that is neither 0 nor 1: annotations[1].iscrowd is 'maybe'",
            id="crowd of text",
        ),
        pytest.param({"bbox": [1, 1, 0, 5]}, "1 x box of zero or negative size: ann", id="size 0"),
    ],
)
def test_a_field_that_cannot_be_used_is_shown_with_its_value(
    bad: dict[str, Any], told: str, tmp_path: Path
) -> None:
    entries = [annotation(1), annotation(2, **bad), annotation(3)]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=False)
    (line,) = boxes.problems.lines()
    assert line.startswith(told)
    assert boxes.annotation_id_N.tolist() == [1, 3]


def test_a_missing_image_id_is_named_with_the_fields_that_are_there(tmp_path: Path) -> None:
    entry = annotation(1)
    entry["item_id"] = entry.pop("image_id")
    boxes = load_boxes(written(tmp_path, document(annotations=[entry])), with_masks=False)
    (line,) = boxes.problems.lines()
    assert line == (
        "1 x annotation without image_id: annotations[0] with the fields id, category_id, bbox, "
        "item_id"
    )


def test_an_unknown_category_is_shown_beside_the_known_ones(tmp_path: Path) -> None:
    content = document(annotations=[annotation(1, category_id=0)])
    boxes = load_boxes(written(tmp_path, content), with_masks=False)
    (line,) = boxes.problems.lines()
    assert line.endswith("annotation 1 (category 0). The categories are 1.")


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "false", None, ""])
def test_a_box_that_is_no_crowd_in_any_spelling_is_used(value: Any, tmp_path: Path) -> None:
    content = document(annotations=[annotation(1, iscrowd=value)])
    boxes = load_boxes(written(tmp_path, content), with_masks=False)
    assert boxes.is_crowd_N.tolist() == [False]
    assert not boxes.problems


@pytest.mark.parametrize("value", [1, True, "1", "true"])
def test_a_crowd_in_any_spelling_is_one(value: Any, tmp_path: Path) -> None:
    content = document(annotations=[annotation(1, iscrowd=value)])
    assert load_boxes(written(tmp_path, content), with_masks=False).is_crowd_N.tolist() == [True]


def test_a_million_bad_boxes_are_one_line_and_few_subjects() -> None:
    problems = Problems()
    for number in range(10_000):
        problems.add("bad box", str(number))
    assert problems.lines() == ["10000 x bad box: 0, 1, 2, 3, 4 and 9995 more"]
    assert len(problems.subjects["bad box"]) == MAX_KEPT_SUBJECTS


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        pytest.param({"id": 2}, "image without file_name: images[1] with the fields id", id="bare"),
        pytest.param("text", "image that is not an object: images[1] is 'text'", id="text"),
        pytest.param(
            image(2, file_name=None),
            "image without file_name: images[1].file_name is null",
            id="null",
        ),
        pytest.param(
            image(2, file_name=""), "image without file_name: images[1].file_name is ''", id="empty"
        ),
        pytest.param(
            image(2, file_name=["a.png"]), "image whose file_name is not text: images[1]", id="list"
        ),
        pytest.param(
            image(2, file_name="a" * 22_000),
            "image whose file_name is longer than 4,096 characters: images[1].file_name is 'aaaa",
            id="22,000 characters",
        ),
        pytest.param(image(2, file_name="a\0b"), "image whose file_name has a NUL", id="NUL"),
        pytest.param(
            image(2, id=1.5),
            "id that is neither a whole number nor text: images[1].id is 1.5",
            id="fraction",
        ),
        pytest.param(
            image(2, width=INFINITY),
            "image whose size is not a whole number: images[1].width is inf",
            id="infinite",
        ),
        pytest.param(
            image(2, width=10**12),
            "image with a side above 1,000,000 px: images[1].width is 1000000000000",
            id="wide",
        ),
        pytest.param(
            image(2, width=10**6, height=10**6), "image of too many pixels: images[1]", id="area"
        ),
        pytest.param(
            image(2, height=0),
            "image without width and height: images[1] (2.png) has width 20 and height 0",
            id="height 0",
        ),
        pytest.param(
            image(1, file_name="b.png"),
            "image id of several files, their boxes are left out: 1 (b.png, 1.png)",
            id="id twice",
        ),
    ],
)
def test_an_image_that_is_not_used_is_counted_and_shown(
    entry: Any, told: str, tmp_path: Path
) -> None:
    content = document(images=[image(1), entry], annotations=[])
    boxes = load_boxes(written(tmp_path, content), with_masks=False)
    (line,) = boxes.problems.lines()
    assert line.startswith(f"1 x {told}")
    assert len(line) < 300
    assert len(boxes.images) == 1


def test_images_without_boxes_are_kept(tmp_path: Path) -> None:
    boxes = load_boxes(written(tmp_path, document()), with_masks=False)
    assert [entry.id for entry in boxes.images] == [1, 2]
    assert boxes.image_index_N.tolist() == [0]


def test_a_set_without_boxes_is_empty_and_not_an_error(tmp_path: Path) -> None:
    boxes = load_boxes(written(tmp_path, document(annotations=[])), with_masks=True)
    assert (len(boxes), boxes.box_xywh_N4.shape, boxes.has_masks()) == (0, (0, 4), False)


def test_boxes_across_the_border_keep_their_coordinates(tmp_path: Path) -> None:
    entries = [annotation(1, bbox=[-3.5, -2, 30, 30])]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=False)
    assert boxes.box_xywh_N4.tolist() == [[-3.5, -2, 30, 30]]
    assert boxes.box_area_N.tolist() == [900]
    assert not boxes.problems


def test_positions_tell_where_a_box_stands_in_the_file(tmp_path: Path) -> None:
    entries = [annotation(7, image_id=9), annotation(5), annotation(6, image_id=2)]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=False)
    assert boxes.annotation_position_N.tolist() == [1, 2]
    assert boxes.annotation_id_N.tolist() == [5, 6]
    assert boxes.image_of(1).file_name == "2.png"


@pytest.mark.parametrize("categories", [None, [], {}])
def test_categories_may_be_missing(categories: Any, tmp_path: Path) -> None:
    content = document(categories=categories, annotations=[annotation(1, category_id=4)])
    assert load_boxes(written(tmp_path, content), with_masks=False).categories == {4: "4"}


def test_without_a_list_of_categories_any_is_one(tmp_path: Path) -> None:
    entries = [annotation(1, category_id=4), annotation(2, category_id=9)]
    content = document(categories=[], annotations=entries)
    boxes = load_boxes(written(tmp_path, content), with_masks=False)
    assert boxes.categories == {4: "4", 9: "9"}
    assert not boxes.problems


def test_images_may_stand_behind_their_annotations(tmp_path: Path) -> None:
    content = dict(reversed(document().items()))
    assert list(content) == ["annotations", "categories", "images"]
    assert load_boxes(written(tmp_path, content), with_masks=False).image_of(0).id == 1


def test_an_image_is_the_one_of_the_file(tmp_path: Path) -> None:
    images = [image(7, file_name="ü/\ud800.png"), image(3, width=30), image("5")]
    boxes = load_boxes(
        written(tmp_path, document(images=images, annotations=[annotation(1, image_id=3)])),
        with_masks=False,
    )
    assert [vars(entry) for entry in boxes.images] == images
    assert vars(boxes.image_of(0)) == images[1]
    assert boxes.images[-1].id == "5"
    assert [entry.id for entry in boxes.images[1:]] == [3, "5"]
    assert boxes.image_area_I.tolist() == [320, 480, 320]


def test_a_selection_keeps_the_masks_of_its_boxes(tmp_path: Path) -> None:
    polygons = [[[1, 2, 8, 2, 8, y]] for y in (6, 8, 10)]
    entries = [
        annotation(1, segmentation=polygons[0]),
        annotation(2, bbox=[1, 1, 0, 0], segmentation=polygons[1]),
        annotation(3),
        annotation(4, segmentation=polygons[2], caption="ü"),
    ]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=True)
    chosen = boxes.select(np.array([2, 1]))
    assert chosen.annotation_id_N.tolist() == [4, 3]
    assert chosen.segmentations is not None
    assert chosen.segmentations.is_given_N.tolist() == [True, False]
    assert chosen.segmentations[0] == polygons[2]
    assert chosen.rle_of(0) == boxes.rle_of(2) != boxes.rle_of(0)
    assert chosen.rle_of(1) is None


@pytest.mark.parametrize("change", ["other content", "gone"])
def test_masks_of_a_file_that_has_changed_are_not_taken(change: str, tmp_path: Path) -> None:
    entries = [annotation(1, segmentation=[[1, 2, 8, 2, 8, 9]])]
    path = written(tmp_path, document(annotations=entries))
    boxes = load_boxes(path, with_masks=True)
    path.unlink()
    if change == "other content":
        written(tmp_path, document(annotations=[annotation(2), *entries]))
    with pytest.raises(AnnotationError, match="changed after its boxes were read"):
        boxes.rle_of(0)


def test_what_a_loader_process_gets_has_no_object_for_a_box_or_an_image(tmp_path: Path) -> None:
    small, large = (
        document(
            images=[image(k) for k in range(count)],
            annotations=[annotation(k, image_id=k) for k in range(count)],
        )
        for count in (10, 1000)
    )

    def num_objects(content: Any) -> int:
        gc.collect()
        before = len(gc.get_objects())
        boxes = load_boxes(written(tmp_path, content), with_masks=True)
        gc.collect()
        assert len(boxes)
        return len(gc.get_objects()) - before

    assert num_objects(large) <= num_objects(small) + 10


def test_without_being_asked_for_masks_none_is_held(tmp_path: Path) -> None:
    entries = [annotation(1, segmentation=[[1, 2, 8, 2, 8, 9]])]
    path = written(tmp_path, document(annotations=entries))
    assert load_boxes(path, with_masks=False).segmentations is None
    assert load_boxes(path, with_masks=False).rle_of(0) is None
    rle = load_boxes(path, with_masks=True).rle_of(0)
    assert rle is not None
    assert rle["size"] == [16, 20]


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_an_empty_segmentation_is_none(empty: Any, tmp_path: Path) -> None:
    content = document(annotations=[annotation(1, segmentation=empty)])
    boxes = load_boxes(written(tmp_path, content), with_masks=True)
    assert boxes.rle_of(0) is None
    assert not boxes.has_masks()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Cannot read the annotation file .* as JSON: "),
        ("\ufeff\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "as JSON: "),
        ("[" * 100_000, "Cannot read the annotation file .* as JSON: "),
        ([], "it holds a JSON list, not an object"),
        ('"text"', "it holds a JSON str, not an object"),
        ({"images": []}, "it has no list 'annotations'"),
        ({"images": 5, "annotations": []}, "it has no list 'images'"),
    ],
    ids=["cut", "bytes", "deep", "list", "text", "no annotations", "no images"],
)
def test_a_file_that_is_no_coco_file_says_so(content: Any, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(AnnotationError, match=told) as caught:
        load_boxes(path, with_masks=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.json", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="Cannot read the annotation file"):
        load_boxes(tmp_path / name, with_masks=False)


def test_a_set_without_usable_images_cannot_be_used(tmp_path: Path) -> None:
    path = written(tmp_path, document(images=[image(1, width=0)]))
    told = r"no image of it is usable\. 1 x image without width and height: images\[0\]"
    with pytest.raises(AnnotationError, match=told):
        load_boxes(path, with_masks=False)


def test_many_problems_of_a_kind_are_counted_and_the_first_named() -> None:
    problems = Problems()
    for number in range(8):
        problems.add("broken thing", str(number))
    assert problems.lines() == ["8 x broken thing: 0, 1, 2, 3, 4 and 3 more"]
    assert problems.lines(max_named=8) == ["8 x broken thing: 0, 1, 2, 3, 4, 5, 6, 7"]
    assert not Problems()


def test_boxes_are_exact(tmp_path: Path) -> None:
    box = [0.1, 1 / 3, 7.000000001, 8.9]
    boxes = load_boxes(
        written(tmp_path, document(annotations=[annotation(1, bbox=box)])), with_masks=False
    )
    np.testing.assert_array_equal(boxes.box_xywh_N4[0], box)


def test_the_area_of_a_box_is_that_of_the_array(tmp_path: Path) -> None:
    entries = [annotation(1), annotation(2, bbox=[0.1, 1 / 3, 7.7, 8.9])]
    boxes = load_boxes(written(tmp_path, document(annotations=entries)), with_masks=False)
    assert [boxes.area_of(row) for row in range(2)] == boxes.box_area_N.tolist()
