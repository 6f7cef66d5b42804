from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import TinySet, write_tiny_set

from mal.data.crop_dataset import PredictionCrops
from mal.data.datamodule import (
    collate_readable,
    in_image_order,
    open_image_set,
    prediction_loader,
)
from mal.errors import AnnotationError, SpecError


@pytest.fixture
def tiny(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path)


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("dataset.train", "Set dataset.train_ann_path and dataset.train_img_dir."),
        ("inference", "Set inference.ann_path and inference.img_dir."),
    ],
)
@pytest.mark.parametrize("missing", ["annotations", "images"])
def test_an_empty_uri_names_the_keys_to_set(
    key: str, keys: str, missing: str, tiny: TinySet
) -> None:
    uris = ("", str(tiny.images)) if missing == "annotations" else (str(tiny.annotations), "")
    with pytest.raises(SpecError) as caught:
        open_image_set(*uris, key=key, with_masks=False)
    assert str(caught.value) == f"{key} must name its {missing}, got ''. {keys}"


def test_what_cannot_be_used_is_logged_once(
    tiny: TinySet, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny.images / "picture 1.png").unlink()
    with caplog.at_level(logging.WARNING, "mal"):
        reader = open_image_set(
            str(tiny.annotations), str(tiny.images), key="dataset.val", with_masks=True
        )
    assert reader.missing == {1}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tiny.annotations}: 1 x image missing: picture 1.png"
    ]
    assert not reader.boxes.problems


def test_a_folder_without_any_of_the_images_is_an_error(tiny: TinySet, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(
        AnnotationError,
        match=r"holds none of the 3 images .* \(first: picture 0\.png\)\. Set dataset",
    ):
        open_image_set(
            str(tiny.annotations), str(tmp_path / "other"), key="dataset.val", with_masks=False
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prediction_leaves_out_what_cannot_be_read(num_workers: int, tiny: TinySet) -> None:
    (tiny.images / "picture 1.png").write_bytes(b"no image")
    reader = open_image_set(
        str(tiny.annotations), str(tiny.images), key="dataset.val", with_masks=False
    )
    crops = PredictionCrops(reader, np.arange(6), crop_size=16, margin_rate=0.6)
    batches = list(prediction_loader(crops, [[0, 1], [2, 3], [4, 5]], num_workers=num_workers))
    assert [None if b is None else b.index_B.tolist() for b in batches] == [[0, 1], None, [4, 5]]


def test_prediction_of_no_boxes_is_no_batches(tiny: TinySet) -> None:
    reader = open_image_set(
        str(tiny.annotations), str(tiny.images), key="dataset.val", with_masks=False
    )
    crops = PredictionCrops(reader, np.arange(0), crop_size=16, margin_rate=0.6)
    assert list(prediction_loader(crops, [], num_workers=2)) == []
    assert collate_readable([None, None]) is None


def test_rows_of_an_image_follow_each_other_in_the_order_of_the_file(tiny: TinySet) -> None:
    document = tiny.document()
    for entry, image_id in zip(document["annotations"], (3, 1, 3, 2, 1, 2), strict=True):
        entry["image_id"] = image_id
    path = tiny.rewritten(document, "mixed.json").annotations
    reader = open_image_set(str(path), str(tiny.images), key="dataset.val", with_masks=False)
    assert in_image_order(reader.boxes, np.arange(6)).tolist() == [1, 4, 3, 5, 0, 2]
    assert in_image_order(reader.boxes, np.array([0, 3, 4])).tolist() == [4, 3, 0]
