"""The demo set is whole, repeatable and not solved by its boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mal.data.synthetic import SHAPES, DemoDataset, draw_picture, generate_demo_dataset
from mal.errors import MalError


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return generate_demo_dataset(tmp_path_factory.mktemp("demo") / "set", num_images=20, seed=3)


def read_coco(path: Path) -> dict[str, Any]:
    coco: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return coco


def both_splits(demo_set: DemoDataset) -> list[dict[str, Any]]:
    return [read_coco(demo_set.train_file), read_coco(demo_set.val_file)]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_four_fifths_of_the_pictures_are_for_training(demo_set: DemoDataset) -> None:
    train, val = both_splits(demo_set)
    assert (len(train["images"]), len(val["images"])) == (16, 4)


def test_no_picture_and_no_identifier_is_in_both_splits(demo_set: DemoDataset) -> None:
    train, val = both_splits(demo_set)
    for key in ("images", "annotations"):
        train_ids, val_ids = ([item["id"] for item in coco[key]] for coco in (train, val))
        assert len({*train_ids, *val_ids}) == len(train_ids) + len(val_ids)


def test_every_image_entry_describes_its_file(demo_set: DemoDataset) -> None:
    entries = [entry for coco in both_splits(demo_set) for entry in coco["images"]]
    names = {path.name for path in demo_set.image_dir.iterdir()}
    assert {entry["file_name"] for entry in entries} == names
    for entry in entries:
        with Image.open(demo_set.image_dir / entry["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))


def test_box_and_area_are_those_of_the_visible_mask(demo_set: DemoDataset) -> None:
    for coco in both_splits(demo_set):
        for annotation in coco["annotations"]:
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = columns[0], rows[0]
            assert annotation["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] in range(1, len(SHAPES) + 1)


def test_no_pixel_belongs_to_two_objects() -> None:
    for seed in range(5):
        picture = draw_picture(np.random.default_rng(seed))
        assert len(picture.masks) == len(picture.category_ids) >= 1
        assert np.sum(picture.masks, axis=0).max() == 1


def test_plain_boxes_are_less_than_half_right(demo_set: DemoDataset) -> None:
    annotations = [one for coco in both_splits(demo_set) for one in coco["annotations"]]
    ious = [one["area"] / (one["bbox"][2] * one["bbox"][3]) for one in annotations]
    assert np.mean(ious) < 0.5


def test_the_same_seed_gives_the_same_bytes(demo_set: DemoDataset, tmp_path: Path) -> None:
    generate_demo_dataset(tmp_path / "again", num_images=20, seed=3)
    assert files_of(tmp_path / "again") == files_of(demo_set.image_dir.parent)


def test_a_larger_set_begins_with_the_pictures_of_a_smaller_one(tmp_path: Path) -> None:
    small = generate_demo_dataset(tmp_path / "small", num_images=2, seed=3)
    large = generate_demo_dataset(tmp_path / "large", num_images=3, seed=3)
    small_files, large_files = files_of(small.image_dir), files_of(large.image_dir)
    assert small_files.items() <= large_files.items()


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    one = generate_demo_dataset(tmp_path / "one", num_images=2, seed=0)
    other = generate_demo_dataset(tmp_path / "other", num_images=2, seed=1)
    assert not set(files_of(one.image_dir).values()) & set(files_of(other.image_dir).values())


def test_an_existing_empty_folder_is_filled(tmp_path: Path) -> None:
    assert generate_demo_dataset(tmp_path, num_images=2, seed=0).train_file.is_file()


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder with a file", "file"])
def test_what_exists_is_refused_and_left_as_it_was(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "target"
    kept = target / "notes.txt" if is_folder else target
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine", encoding="utf-8")
    with pytest.raises(MalError, match="output_dir must be new or an empty folder"):
        generate_demo_dataset(target, num_images=2, seed=0)
    assert kept.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("num_images", "seed", "noun"),
    [(1, 0, "num_images"), (-3, 0, "num_images"), (4, -1, "seed")],
    ids=["one picture", "negative number", "negative seed"],
)
def test_an_impossible_request_is_refused(
    tmp_path: Path, num_images: int, seed: int, noun: str
) -> None:
    with pytest.raises(MalError, match=f"^{noun} must be"):
        generate_demo_dataset(tmp_path / "set", num_images=num_images, seed=seed)


def test_a_failure_leaves_no_half_built_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        generate_demo_dataset(tmp_path / "set", num_images=2, seed=0)
    assert list(tmp_path.iterdir()) == []
