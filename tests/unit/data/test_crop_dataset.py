from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sets import TinySet, write_tiny_set

from mal.data import crop_dataset
from mal.data.annotations import load_boxes
from mal.data.batch import CropBatch
from mal.data.crop_dataset import (
    ImageReader,
    PredictionCrops,
    TrainingCrops,
    select_training_boxes,
)
from mal.data.datamodule import training_loader
from mal.data.images import read_image
from mal.data.sampler import EpochSampler
from mal.errors import AnnotationError
from mal.spec import ExperimentSpec

NUM_BOXES = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return write_tiny_set(tmp_path_factory.mktemp("tiny"))


def reader_of(data: TinySet, *, with_masks: bool = False) -> ImageReader:
    return ImageReader(load_boxes(data.annotations, with_masks=with_masks), data.images)


def spec_of(**dataset: Any) -> ExperimentSpec:
    spec = ExperimentSpec()
    spec.dataset = dataclasses.replace(
        spec.dataset, **{"crop_size": 16, "min_obj_size": 0, "num_workers_per_gpu": 0} | dataset
    )
    return spec


def crops_of(
    reader: ImageReader, spec: ExperimentSpec | None = None, seed: int = 0
) -> TrainingCrops:
    return TrainingCrops(reader, np.arange(len(reader.boxes)), spec or spec_of(), seed)


def assert_same(left: CropBatch, right: CropBatch) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        assert (value is None) == (other is None), name
        assert value is None or torch.equal(value, other), name


def test_an_item_depends_on_seed_epoch_and_position_alone(tiny: TinySet) -> None:
    forwards, backwards = crops_of(reader_of(tiny)), crops_of(reader_of(tiny))
    keys = [(epoch, position) for epoch in (0, 5) for position in range(NUM_BOXES)]
    first = {key: forwards[key] for key in keys}
    for key in reversed(keys):
        assert_same(backwards[key], first[key])


@pytest.mark.parametrize("change", ["seed", "epoch"])
def test_another_seed_or_epoch_is_another_crop(change: str, tiny: TinySet) -> None:
    first = crops_of(reader_of(tiny))[0, 0]
    other = crops_of(reader_of(tiny), seed=change == "seed")[int(change == "epoch"), 0]
    assert not torch.equal(first.image_BCSS, other.image_BCSS)


def test_batches_are_the_same_whatever_the_number_of_workers(tiny: TinySet) -> None:
    epochs = []
    for num_workers in (0, 2):
        spec = spec_of(num_workers_per_gpu=num_workers)
        spec.train.batch_size = 4
        crops = crops_of(reader_of(tiny), spec, seed=3)
        epochs.append(list(training_loader(crops, EpochSampler(NUM_BOXES, seed=3), spec)))
    assert [len(batch) for batch in epochs[0]] == [4, 2]
    for left, right in zip(*epochs, strict=True):
        assert_same(left, right)


def test_the_student_sees_other_colours_and_the_teacher_the_clean_crop(tiny: TinySet) -> None:
    clean = [crops_of(reader_of(tiny), spec_of(photometric_rate=0))[0, p] for p in range(NUM_BOXES)]
    both = [crops_of(reader_of(tiny))[0, p] for p in range(NUM_BOXES)]
    assert all(item.student_image_BCSS is None for item in clean)
    for plain, item in zip(clean, both, strict=True):
        assert torch.equal(plain.image_BCSS, item.image_BCSS)
    changed = [not torch.equal(i.image_BCSS, i.student_image_BCSS) for i in both]  # type: ignore[arg-type]
    assert any(changed)


def test_boxes_alone_read_no_mask_and_masks_follow_the_crop(tiny: TinySet) -> None:
    assert crops_of(reader_of(tiny, with_masks=True))[0, 0].true_mask_BSS is None
    spec = spec_of(crop_size=64)
    spec.train.supervision = "mask"
    item = crops_of(reader_of(tiny, with_masks=True), spec)[0, 0]
    assert item.true_mask_BSS is not None
    assert set(item.true_mask_BSS.flatten().tolist()) == {0, 1}
    rows, columns = item.true_mask_BSS[0].nonzero().unbind(1)
    seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 64
    torch.testing.assert_close(seen.float(), item.unit_box_B4[0], atol=0.06, rtol=0)


@pytest.mark.parametrize("spoil", ["cut", "no image", "missing"])
def test_a_broken_image_gives_way_to_the_next(
    spoil: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_tiny_set(tmp_path, num_images=2, boxes_per_image=1)
    path = data.images / "picture 0.png"
    reader = reader_of(data)
    if spoil == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:99] if spoil == "cut" else b"no image")
    with caplog.at_level(logging.WARNING, "mal"):
        item = crops_of(reader)[0, 0]
    assert item.index_B.tolist() == [1]
    assert "annotation 1 is skipped" in caplog.text


def test_a_set_of_broken_images_ends_with_the_last_error(tmp_path: Path) -> None:
    data = write_tiny_set(tmp_path, num_images=1)
    reader = reader_of(data)
    (data.images / "picture 0.png").write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"picture 0\.png"):
        crops_of(reader)[0, 0]


def decoded_names(
    monkeypatch: pytest.MonkeyPatch, crops: TrainingCrops, sampler: EpochSampler
) -> Counter[str]:
    """Return how often each image is decoded in an epoch."""
    names: Counter[str] = Counter()

    def counting(path: Path, **size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        names[path.name] += 1
        return read_image(path, **size)

    monkeypatch.setattr(crop_dataset, "read_image", counting)
    for _ in training_loader(crops, sampler, crops.spec):
        pass
    return names


def test_images_beyond_the_pool_are_decoded_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tiny_set(tmp_path, num_images=4, boxes_per_image=3, size_px=400)
    reader = reader_of(data)  # 0.46 MiB an image: two of four fit
    crops = crops_of(reader, spec_of(shuffle_pool_mib=1))
    sampler = EpochSampler(12, seed=0)
    assert set(decoded_names(monkeypatch, crops, sampler).values()) == {1}
    assert sampler.pools is not None
    assert len(crops.reader._decoded) == 2


@pytest.mark.parametrize("pool_mib", [0, 1])
def test_a_set_that_fits_into_the_pool_is_shuffled_as_a_whole(pool_mib: int, tiny: TinySet) -> None:
    spec = spec_of(shuffle_pool_mib=pool_mib)
    sampler = EpochSampler(NUM_BOXES, seed=5)
    loader = training_loader(crops_of(reader_of(tiny), spec), sampler, spec)
    positions = [int(batch.index_B) for batch in loader]
    assert positions == np.random.default_rng([5, 0]).permutation(NUM_BOXES).tolist()


def edited(data: TinySet, edit: Callable[[dict[str, Any]], None], name: str) -> TinySet:
    document = data.document()
    edit(document)
    return data.rewritten(document, name)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"min_obj_size": 9.0}, [1, 2, 3]),
        ({"min_obj_size": 100.0}, [2, 3]),
        ({"max_obj_size": 400.0}, [0, 1]),
        ({"min_obj_side": 10.0}, [1, 2, 3]),
        ({"min_obj_side": 10.1}, [2, 3]),
    ],
)
def test_only_boxes_inside_the_limits_are_trained(
    limits: dict[str, float], kept: list[int], tiny: TinySet
) -> None:
    boxes = ([0, 0, 3, 3], [0, 0, 10, 10], [-20, -20, 40, 40], [0, 0, 20, 20], [1, 1, 2, 40])

    def edit(document: dict[str, Any]) -> None:
        document["annotations"] = [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)
        ]

    reader = reader_of(edited(tiny, edit, "limits.json"))
    assert select_training_boxes(reader, spec_of(**limits)).tolist() == kept


def test_crowds_and_boxes_of_missing_images_are_not_trained(tmp_path: Path) -> None:
    data = write_tiny_set(tmp_path)
    (data.images / "picture 2.png").unlink()

    def edit(document: dict[str, Any]) -> None:
        document["annotations"][0]["iscrowd"] = 1

    reader = reader_of(edited(data, edit, "crowd.json"))
    assert reader.missing == {2}
    assert select_training_boxes(reader, spec_of()).tolist() == [1, 2, 3]


def test_boxes_without_a_mask_are_not_trained_on_masks(tiny: TinySet) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["annotations"][1]["segmentation"]

    reader = reader_of(edited(tiny, edit, "partial.json"), with_masks=True)
    spec = spec_of()
    spec.train.supervision = "mask"
    assert select_training_boxes(reader, spec).tolist() == [0, 2, 3, 4, 5]


def test_training_on_masks_says_what_is_left_out_and_what_uses_all_boxes(
    tiny: TinySet, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["annotations"][1]["segmentation"]
        document["annotations"][2]["segmentation"] = {"size": [48, 48], "counts": [48 * 48]}

    reader = reader_of(edited(tiny, edit, "partial masks.json"), with_masks=True)
    spec = spec_of()
    spec.train.supervision = "mask"
    with caplog.at_level(logging.INFO, "mal"):
        rows = select_training_boxes(reader, spec)
        item = TrainingCrops(reader, rows, spec, seed=0)[0, 1]
    assert "1 without a true mask" in caplog.text
    assert "train.supervision=box trains on all 6 boxes" in caplog.text
    assert "annotation 3 is skipped: its true mask is empty" in caplog.text
    assert item.true_mask_BSS is not None
    assert item.true_mask_BSS.any()


def test_nothing_to_train_on_names_the_limit(tiny: TinySet) -> None:
    with pytest.raises(AnnotationError, match=r"none of its 6 .*Lower dataset\.min_obj_size"):
        select_training_boxes(reader_of(tiny), spec_of(min_obj_size=1e9))


def test_a_box_across_the_border_is_padded_with_black(tiny: TinySet) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["annotations"] = [document["annotations"][0] | {"bbox": [-24, 0, 48, 48]}]

    reader = reader_of(edited(tiny, edit, "border.json"))
    crops = PredictionCrops(reader, np.arange(1), crop_size=49, margin_rate=0)
    item = crops[0]
    assert item is not None
    assert crops.window_of(0) == (-24, 0, 25, 49)
    assert item.image_BCSS[0, :, :, :24].max() == 0
    assert item.image_BCSS[0, :, :48, 24:].max() > 0
    torch.testing.assert_close(item.unit_box_B4[0], torch.tensor([24, 0, 48, 48]) / 49)


def test_a_prediction_item_of_a_broken_image_is_none(tmp_path: Path) -> None:
    data = write_tiny_set(tmp_path, num_images=2, boxes_per_image=1)
    (data.images / "picture 1.png").write_bytes(b"no image")
    crops = PredictionCrops(reader_of(data), np.arange(2), crop_size=16, margin_rate=0.6)
    assert crops[0] is not None
    assert crops[1] is None


def test_decoded_images_are_kept_up_to_a_size(
    tiny: TinySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_dataset, "DECODED_IMAGES_MAX_BYTES", 2 * 48 * 48 * 3)
    decoded: list[str] = []

    def counting(path: Path, **size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        decoded.append(path.name[8])
        return read_image(path, **size)

    monkeypatch.setattr(crop_dataset, "read_image", counting)
    reader = reader_of(tiny)
    for index in (0, 1, 0, 1, 2, 1, 0, 2):
        reader(index)
    assert "".join(decoded) == "01202"


def test_an_image_larger_than_the_bound_is_kept_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_dataset, "DECODED_IMAGES_MAX_BYTES", 10)
    data = write_tiny_set(tmp_path)
    reader = reader_of(data)
    pixels = reader(0)
    assert reader(0) is pixels
    assert reader(1) is not pixels
    np.testing.assert_array_equal(reader(0), Image.open(data.images / "picture 0.png"))
