"""Losses of hand-drawn 4x4 masks, worked out on paper."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mal.model.losses import DICE_EPSILON, dice_loss, mil_loss


def grid(*rows: str) -> Tensor:
    """Draw a mask: # is 1, o is 0.5."""
    values = {"#": 1.0, "o": 0.5, ".": 0.0}
    return torch.tensor([[[values[pixel] for pixel in row] for row in rows]])


BOX = grid("....", ".##.", ".##.", "....")
EMPTY = grid("....", "....", "....", "....")
FULL = grid("####", "####", "####", "####")
DIAGONAL = grid("....", ".#..", "..#.", "....")
UPPER = grid("....", ".##.", "....", "....")
FAINT = grid("....", ".oo.", ".oo.", "....")


@pytest.mark.parametrize(
    ("pred", "target", "overlap", "size"),
    [
        (BOX, BOX, 4, 8),
        (DIAGONAL, BOX, 2, 6),
        (UPPER, BOX, 2, 6),
        (FULL, BOX, 4, 20),
        (FAINT, BOX, 2, 5),
        (EMPTY, BOX, 0, 4),
    ],
    ids=["same", "diagonal", "half", "full", "faint", "empty"],
)
def test_dice_of_drawn_masks(pred: Tensor, target: Tensor, overlap: float, size: float) -> None:
    expected = 1 - 2 * overlap / (size + DICE_EPSILON)
    assert dice_loss(pred, target).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (BOX, 0.0),
        (DIAGONAL, 0.0),
        # Of the rows one of two is met: 1 - 2 * 1 / (1 + 2); the columns are all met.
        (UPPER, 1 / 3),
        # Both 1 - 2 * 2 / (4 + 2).
        (FULL, 2 / 3),
        # Both 1 - 2 * 1 / (0.5 + 2).
        (FAINT, 0.4),
        (EMPTY, 2.0),
    ],
    ids=["whole box", "touching every line", "half", "beyond the box", "faint", "nothing"],
)
def test_mil_of_drawn_masks(mask: Tensor, expected: float) -> None:
    assert mil_loss(mask, BOX).tolist() == pytest.approx([expected], abs=2e-3)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 6), width=st.integers(1, 6))
def test_losses_are_bounded_and_one_an_item(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(3, height, width, generator=generator)
    box = (torch.rand(3, height, width, generator=generator) > 0.5).float()
    for loss, highest in ((dice_loss(prob, box), 1), (mil_loss(prob, box), 2)):
        assert loss.shape == (3,)
        assert (loss >= 0).all()
        assert (loss <= highest).all()
    alone = torch.cat([mil_loss(prob[i : i + 1], box[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(mil_loss(prob, box), alone)


def test_the_gradient_of_mil_reaches_the_strongest_pixel_of_a_line() -> None:
    prob = torch.full((1, 4, 4), 0.1)
    prob[0, 1, 2] = 0.3
    prob.requires_grad_()
    mil_loss(prob, BOX).sum().backward()  # type: ignore[no-untyped-call]
    assert prob.grad is not None
    assert prob.grad[0, 1, 2] < prob.grad[0, 1, 1]
