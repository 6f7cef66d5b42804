"""Points bend a mask where they contradict it, and nowhere else."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mal.model.affinity import TokenAffinity
from mal.model.losses import point_loss
from mal.model.mean_field import mean_field
from mal.model.prompt import known_pixels, refine_by_points
from mal.model.pseudo_label import make_pseudo_label
from mal.spec.experiment import TrainSpec

SIZE = 16


def tokens_of_halves() -> Tensor:
    """Tokens of the left half point one way, of the right half another."""
    tokens = torch.zeros(1, 2, 8, 8)
    tokens[:, 0, :, :4] = 1
    tokens[:, 1, :, 4:] = 1
    return tokens


def points(*listed: tuple[float, float, int]) -> Tensor:
    return torch.tensor([listed], dtype=torch.float32)


def test_a_pixel_is_known_by_the_points_in_it() -> None:
    known = known_pixels(points((0.1, 0.3, 1), (0.9, 0.99, 0), (0.4, 0.1, -1)), 4)
    expected = torch.zeros(1, 4, 4)
    expected[0, 1, 0], expected[0, 3, 3] = 1, -1
    assert torch.equal(known, expected)


def test_as_many_points_on_as_off_leave_a_pixel_unknown() -> None:
    assert not known_pixels(points((0.1, 0.1, 1), (0.2, 0.2, 0)), 2).any()


def test_a_missed_point_wins_places_like_it_and_no_others() -> None:
    prob = torch.full((1, SIZE, SIZE), 0.2)
    refined = refine_by_points(prob, tokens_of_halves(), points((0.3, 0.5, 1)))
    assert refined[0, 8, 4] > 0.7
    assert refined[0, 8, 2] > 0.5
    assert refined[0, 8, 12] == pytest.approx(0.2, abs=0.02)


def test_a_point_off_the_object_takes_its_place_away() -> None:
    prob = torch.full((1, SIZE, SIZE), 0.8)
    refined = refine_by_points(prob, tokens_of_halves(), points((0.7, 0.5, 0)), (0.4, 0.4))
    assert refined[0, 8, 11] < 0.2
    assert refined[0, 8, 3] == pytest.approx(0.8, abs=0.02)


def test_points_that_the_mask_agrees_with_change_nothing() -> None:
    prob = torch.full((1, SIZE, SIZE), 0.95)
    refined = refine_by_points(prob, tokens_of_halves(), points((0.3, 0.5, 1), (0, 0, -1)))
    torch.testing.assert_close(refined, prob)


@given(st.integers(0, 10_000), st.integers(1, 10))
def test_every_point_gets_its_label(seed: int, count: int) -> None:
    """Even where like places are told apart: the points lie in different pixels."""
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(1, SIZE, SIZE, generator=generator)
    cells = torch.randperm(16, generator=generator)[:count]
    place = torch.stack([(cells % 4 * 4 + 2.5) / SIZE, (cells // 4 * 4 + 2.5) / SIZE], 1)
    label = torch.randint(0, 2, (count, 1), generator=generator)
    tokens = torch.randn(1, 6, 8, 8, generator=generator)
    refined = refine_by_points(prob, tokens, torch.cat([place, label.float()], 1)[None])
    for cell, wanted in zip(cells.tolist(), label[:, 0].tolist(), strict=True):
        assert (refined[0, cell // 4 * 4 + 2, cell % 4 * 4 + 2] > 0.5) == bool(wanted)


def test_the_loss_reads_the_map_between_its_pixels() -> None:
    logits = torch.tensor([[[-2.0, 2.0], [-2.0, 2.0]]]).repeat(3, 1, 1)
    loss = point_loss(
        logits,
        torch.tensor(
            [
                [[0.5, 0.5, 1.0], [0, 0, -1]],  # midway between -2 and 2
                [[0.75, 0.5, 1.0], [0.25, 0.5, 0.0]],  # right twice
                [[0, 0, -1.0], [0, 0, -1.0]],  # none
            ]
        ),
    )
    expected = torch.tensor([0.0, 2.0]).neg().exp().log1p()
    torch.testing.assert_close(loss, torch.tensor([expected[0] / 10, 2 * expected[1] / 10, 0.0]))


def test_points_beyond_ten_share_the_weight_of_ten() -> None:
    logits = torch.zeros(2, 4, 4)
    points = torch.full((2, 20, 3), 0.5)
    points[0, :10, 2], points[0, 10:, 2] = 1, -1
    points[1, :, 2] = 1
    torch.testing.assert_close(*point_loss(logits, points))


def test_the_mean_field_stays_fixed_at_points() -> None:
    """A flat picture: the neighbours, all of one colour, want the opposite."""
    image = torch.zeros(1, 3, 8, 8)
    prob = torch.full((1, 8, 8), 0.8)
    prob[0, 4, 4] = 0.2
    box = torch.zeros(1, 8, 8)
    box[0, 1:7, 1:7] = 1
    known = torch.zeros(1, 8, 8)
    known[0, 3, 3], known[0, 0, 0] = -1, 1
    label = mean_field(image, prob, box, num_iters=10, known_BHW=known)
    assert label[0, 3, 3] == 0
    assert label[0, 0, 0] == 1, "a point on the object beats the box"
    assert label[0, 4, 4] == 1
    plain = mean_field(image, prob, box, num_iters=10)
    unknown = mean_field(image, prob, box, num_iters=10, known_BHW=torch.zeros(1, 8, 8))
    assert torch.equal(plain, unknown)


@pytest.mark.parametrize("ratio", [1, 2, 3])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8))
def test_a_pseudo_label_never_contradicts_points(ratio: int, seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(2, count, 2, generator=generator)
    label = torch.randint(-1, 2, (2, count, 1), generator=generator)
    label[1] = -1
    points = torch.cat([place, label.float()], 2)
    box = torch.zeros(2, SIZE, SIZE)
    box[:, 3:12, 2:13] = 1
    make = functools.partial(
        make_pseudo_label,
        torch.rand(2, SIZE, SIZE, generator=generator),
        box,
        torch.rand(2, 3, 64, 64, generator=generator),
        TokenAffinity(
            torch.randn(2, 6, 8, 8, generator=generator), torch.tensor([[0.1, 0.2, 0.8, 0.8]] * 2)
        ),
        train=dataclasses.replace(TrainSpec(), crf_size_ratio=ratio, crf_num_iter=5),
    )
    found, plain = make(point_BK3=points), make()
    known = known_pixels(points, SIZE)
    assert torch.equal(found[known != 0], (known[known != 0] > 0).float())
    assert torch.equal(found[1], plain[1]), "an item without points stays to the bit"
