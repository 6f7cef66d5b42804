from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mal.data.batch import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropBatch,
    box_mask_from_unit_box,
    collate_crops,
    mirror_unit_box,
    normalize_image,
)

unit_boxes = arrays("float32", (3, 4), elements=st.floats(-0.5, 1.5, width=32)).map(
    torch.from_numpy
)
# Multiples of 1/16 are exact in float32, and so is 1 minus them.
exact_boxes = arrays("int64", (3, 4), elements=st.integers(-8, 24)).map(
    lambda grid: torch.from_numpy(grid).float() / 16
)


def batch(unit_box_B4: Tensor, *, full: bool = True, first_index: int = 0) -> CropBatch:
    """Draw a batch of 4 x 4 crops whose every pixel differs."""
    count = len(unit_box_B4)
    image = torch.arange(count * 48, dtype=torch.int64).remainder(256).byte().view(count, 3, 4, 4)
    return CropBatch(
        image_BCSS=image,
        unit_box_B4=unit_box_B4,
        box_area_B=torch.arange(count).float(),
        index_B=torch.arange(count) + first_index,
        student_image_BCSS=255 - image if full else None,
        true_mask_BSS=image[:, 0] % 2 if full else None,
        features_BLDhw=torch.arange(count * 16).float().view(count, 1, 4, 2, 2) if full else None,
        point_BK3=torch.arange(count * 6).view(count, 2, 3) / 16 if full else None,
    )


def assert_same(left: CropBatch, right: CropBatch) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        assert (value is None) == (other is None), name
        assert value is None or torch.equal(value, other), name


def box_mask_pixel_by_pixel(unit_box_B4: Tensor, size_px: int) -> Tensor:
    mask = torch.zeros(len(unit_box_B4), size_px, size_px)
    for item, (x0, y0, x1, y1) in enumerate(unit_box_B4):
        for row in range(size_px):
            for column in range(size_px):
                x, y = (torch.tensor([column, row]) + 0.5) / size_px
                mask[item, row, column] = float(x0 < x < x1 and y0 < y < y1)
    return mask


@given(unit_boxes, st.sampled_from([1, 2, 4, 7]))
def test_a_box_mask_holds_the_pixels_whose_centre_is_inside(boxes: Tensor, size_px: int) -> None:
    mask = box_mask_from_unit_box(boxes, size_px)
    assert torch.equal(mask, box_mask_pixel_by_pixel(boxes, size_px))


@given(exact_boxes)
def test_mirroring_boxes_mirrors_their_masks(boxes: Tensor) -> None:
    mirrored = box_mask_from_unit_box(mirror_unit_box(boxes), 8)
    assert torch.equal(mirrored, box_mask_from_unit_box(boxes, 8).flip(-1))


@given(exact_boxes, st.booleans())
def test_mirroring_twice_is_the_identity(boxes: Tensor, full: bool) -> None:
    original = batch(boxes, full=full)
    assert_same(original.mirrored().mirrored(), original)


def test_mirroring_flips_all_that_is_seen_and_nothing_else() -> None:
    original = batch(torch.tensor([[0.0, 0.25, 0.5, 1.0]]))
    mirrored = original.mirrored()
    assert mirrored.unit_box_B4.tolist() == [[0.5, 0.25, 1.0, 1.0]]
    for name in ("image_BCSS", "student_image_BCSS", "true_mask_BSS", "features_BLDhw"):
        assert torch.equal(getattr(mirrored, name), getattr(original, name).flip(-1)), name
    assert original.point_BK3 is not None
    assert mirrored.point_BK3 is not None
    torch.testing.assert_close(mirrored.point_BK3[:, :, 0], 1 - original.point_BK3[:, :, 0])
    assert torch.equal(mirrored.point_BK3[:, :, 1:], original.point_BK3[:, :, 1:])
    for name in ("box_area_B", "index_B"):
        assert torch.equal(getattr(mirrored, name), getattr(original, name)), name


@pytest.mark.parametrize("full", [True, False], ids=["every field", "required fields"])
def test_collating_joins_every_field_in_order(full: bool) -> None:
    boxes = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    first, second = batch(boxes[:1], full=full), batch(boxes, full=full, first_index=7)
    joined = collate_crops([first, second])
    assert len(joined) == 3
    assert joined.index_B.tolist() == [0, 7, 8]
    for name, value in vars(joined).items():
        parts = getattr(first, name), getattr(second, name)
        assert (value is None) == (
            not full
            and name in ("student_image_BCSS", "true_mask_BSS", "features_BLDhw", "point_BK3")
        ), name
        assert value is None or torch.equal(value, torch.cat(parts)), name


def test_moving_keeps_all() -> None:
    original = batch(torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), full=False)
    assert_same(original.to(torch.device("cpu")), original)


def test_normalising_uses_the_statistics_of_imagenet() -> None:
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    normalized = normalize_image(image)
    expected = (torch.tensor([0.0, 1.0, 0.2]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(
        IMAGENET_STD
    )
    torch.testing.assert_close(normalized.flatten(), expected)
    assert normalized.dtype == torch.float32


def test_a_batch_of_wrong_shapes_is_refused_at_once() -> None:
    with pytest.raises(AssertionError):
        CropBatch(
            torch.zeros(1, 3, 4, 5, dtype=torch.uint8),
            torch.zeros(1, 4), torch.zeros(1), torch.zeros(1),
        )  # fmt: skip
