"""Several annotation files are one set: no box changes its image, and each knows its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.data.annotations import CocoBoxes
from mal.data.check import check_dataset
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import open_image_set
from mal.data.formats import open_annotations
from mal.errors import AnnotationError, SpecError
from mal.registry.snapshot import read_dataset_manifest, snapshot_dataset
from mal.spec import load_spec, spec_as_dict
from mal.spec.uri_list import join_uris, split_uris
from mal.storage import describe_inputs, open_image_folder

SIZE = (20, 10)


def document(
    names: list[str], boxes: list[tuple[Any, list[float], int]], categories: dict[int, str]
) -> dict[str, Any]:
    """Return COCO with images 1, 2, ... and boxes of (image id, bbox, category id)."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for i, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "bbox": box, "category_id": category, "mine": i}
            for i, (image, box, category) in enumerate(boxes, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    for part, colour in (("a", 10), ("b", 200)):
        (tmp_path / part / "images").mkdir(parents=True)
        Image.new("L", SIZE, colour).save(tmp_path / part / "images" / "1.png")
    first = document(["1.png"], [(1, [1, 1, 4, 4], 1)], {1: "cat"})
    other = document(["1.png"], [(1, [2, 2, 6, 6], 1), (1, [3, 3, 5, 5], 2)], {1: "dog", 2: "cat"})
    for part, content in (("a", first), ("b", other | {"info": {"year": 2}})):
        (tmp_path / part / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def uris(folder: Path, name: str) -> str:
    return join_uris([str(folder / part / name) for part in ("a", "b")])


def rows_of(boxes: CocoBoxes) -> list[tuple[str, str, float]]:
    return [
        (
            boxes.image_of(row).file_name,
            boxes.categories[int(boxes.category_id_N[row])],
            float(boxes.box_xywh_N4[row, 0]),
        )
        for row in range(len(boxes))
    ]


def test_equal_names_in_two_folders_stay_apart(folder: Path) -> None:
    reader = open_image_set(
        uris(folder, "boxes.json"), uris(folder, "images"), key="dataset.train", with_masks=False
    )
    assert rows_of(reader.boxes) == [
        ("1-images/1.png", "cat", 1),
        ("2-images/1.png", "dog", 2),
        ("2-images/1.png", "cat", 3),
    ]
    assert reader.boxes.annotation_id_N.tolist() == [1, 2, 3]
    assert not reader.missing
    with Image.open(reader.path_of(0)) as first, Image.open(reader.path_of(1)) as other:
        assert first.getpixel((0, 0)) == 10
        assert other.getpixel((0, 0)) == 200


def test_an_image_that_one_folder_lacks_is_not_that_of_the_other(folder: Path) -> None:
    (folder / "a" / "images" / "1.png").rename(folder / "a" / "images" / "2.png")
    source = open_annotations(uris(folder, "boxes.json"), images=uris(folder, "images"))
    reader = ImageReader(
        source.load_boxes(with_masks=False), open_image_folder(uris(folder, "images"))
    )
    assert reader.missing == {0}


def test_the_sources_are_in_the_file_that_is_read_and_labelled(folder: Path) -> None:
    source = open_annotations(uris(folder, "boxes.json"), images=uris(folder, "images"))
    content = json.loads(source.path.read_text())
    assert [one["annotations"] for one in content["mal_sources"]] == [
        str(folder / part / "boxes.json") for part in ("a", "b")
    ]
    assert all(len(one["annotations_sha256"]) == 64 for one in content["mal_sources"])
    assert [one["prefix"] for one in content["mal_sources"]] == ["1-images/", "2-images/"]
    kept = [(*one["mal_source"].values(), one["mine"]) for one in content["annotations"]]
    assert kept == [(0, 1, 1), (1, 1, 1), (1, 2, 2)]
    assert content["mal_sources"][1]["info"] == {"year": 2}


def test_an_image_that_two_files_of_one_folder_list_is_one_image(folder: Path) -> None:
    images = str(folder / "a" / "images")
    for given in (images, join_uris([images, images])):
        source = open_annotations(uris(folder, "boxes.json"), images=given)
        boxes = source.load_boxes(with_masks=False)
        assert len(boxes.images) == 1
        assert [row[0] for row in rows_of(boxes)] == ["1.png"] * 3


@pytest.mark.parametrize(
    ("spoil", "num_boxes", "told"),
    [
        pytest.param(
            {"annotations": [{"id": 1, "image_id": 9, "bbox": [1, 1, 2, 2], "category_id": 1}]},
            1, "unknown image", id="image of no file",
        ),
        pytest.param(
            {"annotations": [{"id": 1, "image_id": 1, "bbox": [1, 1, 2, 2], "category_id": 9}]},
            1, "unknown category", id="category of no file",
        ),
        pytest.param(
            {"annotations": [{"id": 1, "image_id": "1x", "bbox": [1, 1, 2, 2], "category_id": 1}]},
            1, "unknown image", id="text id of no file",
        ),
        pytest.param({"annotations": [7, None, []]}, 1, "annotation", id="no objects"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_one_file_never_reaches_the_other(
    spoil: dict[str, Any], num_boxes: int, told: str, folder: Path
) -> None:
    path = folder / "b" / "boxes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | spoil))
    source = open_annotations(uris(folder, "boxes.json"), images=uris(folder, "images"))
    boxes = source.load_boxes(with_masks=False)
    assert len(boxes) == num_boxes
    assert told in " ".join(boxes.problems.lines())


def test_files_of_other_formats_are_joined_too(folder: Path) -> None:
    (folder / "b" / "labels").mkdir()
    (folder / "b" / "labels" / "1.txt").write_text("0 .5 .5 .5 .5")
    given = [str(folder / "a" / "boxes.json"), str(folder / "b" / "labels")]
    source = open_annotations(given, images=uris(folder, "images"))
    assert rows_of(source.load_boxes(with_masks=False)) == [
        ("1-images/1.png", "cat", 1),
        ("2-images/1.png", "0", 5),
    ]


def test_the_number_of_folders_must_fit(folder: Path) -> None:
    given = join_uris([str(folder / "a" / "images")] * 3)
    with pytest.raises(AnnotationError, match="one for each of the 2 annotation files, got 3"):
        open_annotations(uris(folder, "boxes.json"), images=given)
    report = check_dataset(uris(folder, "boxes.json"), given)
    assert not report.is_usable


def test_the_snapshot_has_the_digest_of_each_file(folder: Path) -> None:
    manifest = snapshot_dataset(
        train_images=uris(folder, "images"), train_annotations=uris(folder, "boxes.json")
    )
    manifest.write(folder / "manifest.json")
    read = read_dataset_manifest(folder / "manifest.json")
    assert read == manifest
    assert read.train.num_boxes == 3
    assert read.train.num_missing_images == 0
    assert len({one["annotations_sha256"] for one in read.train.sources}) == 2
    described = describe_inputs({"dataset.train_ann_path": read.train.annotations_uri})
    before = described["dataset.train_ann_path"]
    assert len(before["sha256_of_each"].split(", ")) == 2
    path = folder / "b" / "boxes.json"
    path.write_text(path.read_text() + " ")
    after = describe_inputs({"dataset.train_ann_path": read.train.annotations_uri})
    assert after["dataset.train_ann_path"]["sha256"] != before["sha256"]


class TestSpec:
    def test_a_list_of_paths_is_accepted_and_comes_back_from_the_written_spec(self) -> None:
        spec = load_spec("train", {}, ["dataset.train_ann_path=[a.json, b.json]", "results_dir=r"])
        assert split_uris(spec.dataset.train_ann_path) == ["a.json", "b.json"]
        again = load_spec("train", spec_as_dict(spec))
        assert again == spec

    @pytest.mark.parametrize(
        ("value", "uris_of_it"),
        [
            ("a.json", ["a.json"]),
            ("[a.json", ["[a.json"]),
            ('["a.json"]', ["a.json"]),
            ("[1, 2]", ["[1, 2]"]),
            ("[]", ["[]"]),
            ("", [""]),
        ],
    )
    def test_one_path_stays_as_it_is(self, value: str, uris_of_it: list[str]) -> None:
        assert split_uris(value) == uris_of_it

    def test_a_list_of_other_values_is_an_error(self) -> None:
        with pytest.raises(SpecError, match="train_ann_path must be a path or a list of paths"):
            load_spec("train", {"dataset": {"train_ann_path": ["a.json", 5]}})

    def test_credentials_in_a_list_are_refused(self) -> None:
        given = {"dataset": {"train_img_dir": ["a", "s3://me:secret@bucket/x"]}}
        with pytest.raises(SpecError, match="must not contain credentials") as caught:
            load_spec("train", given)
        assert "secret" not in str(caught.value)
