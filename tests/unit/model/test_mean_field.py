"""The mean field in log-odds against the products of mal-method.md, written out literally."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mal.model.mean_field as mean_field_module
from mal.model.mean_field import mean_field

Array = NDArray[np.float64]


def literal_mean_field(
    image_CHW: Array,
    prob_HW: Array,
    box_HW: Array,
    *,
    kernel_size: int,
    zeta: float,
    num_iters: int,
    low: float = 0.1,
    high: float = 0.9,
) -> Array:
    """Return x after the last iteration, pixel by pixel and factor by factor."""
    height, width = prob_HW.shape
    reach = kernel_size // 2
    x = np.clip(prob_HW * box_HW, low, high)
    for _ in range(num_iters):
        new = np.empty_like(x)
        for row in range(height):
            for column in range(width):
                fg, bg = box_HW[row, column], 1.0
                for r in range(max(row - reach, 0), min(row + reach + 1, height)):
                    for c in range(max(column - reach, 0), min(column + reach + 1, width)):
                        distance = ((image_CHW[:, row, column] - image_CHW[:, r, c]) ** 2).sum()
                        k = math.exp(-distance / (2 * zeta**2))
                        fg *= x[r, c] ** k
                        bg *= (1 - x[r, c]) ** k
                new[row, column] = min(max(fg / (fg + bg), low), high)
        x = new
    return x


def run(image_CHW: Array, prob_HW: Array, box_HW: Array, **facts: float) -> Array:
    label = mean_field(
        torch.from_numpy(image_CHW)[None].float(),
        torch.from_numpy(prob_HW)[None].float(),
        torch.from_numpy(box_HW)[None].float(),
        **facts,  # type: ignore[arg-type]
    )
    assert label.shape == (1, *prob_HW.shape)
    assert label.dtype == torch.float32
    return label[0].double().numpy()


def draw(seed: int, height: int, width: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(3, height, width)) * rng.choice([0.02, 0.1, 1.0])
    box = np.zeros((height, width))
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    box[top : rng.integers(top + 1, height + 1), left : rng.integers(left + 1, width + 1)] = 1
    return image, rng.uniform(size=(height, width)), box


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    kernel_size=st.sampled_from([3, 5]),
    num_iters=st.sampled_from([1, 2, 5, 12]),
    zeta=st.sampled_from([0.05, 0.1, 0.5]),
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
)
def test_the_log_odds_give_the_products_labels(
    seed: int, kernel_size: int, num_iters: int, zeta: float, size: tuple[int, int]
) -> None:
    image, prob, box = draw(seed, *size)
    facts = {"kernel_size": kernel_size, "zeta": zeta, "num_iters": num_iters}
    expected = literal_mean_field(image, prob, box, **facts)  # type: ignore[arg-type]
    label = run(image, prob, box, **facts)
    # float32 cannot decide what float64 calls a tie.
    decided = abs(expected - 0.5) > 1e-4
    np.testing.assert_array_equal(label[decided], (expected > 0.5)[decided])
    assert not label[box == 0].any()


FLAT = np.zeros((3, 4, 4))
BOX = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=np.float64)
ALL = np.ones((4, 4))
SPLIT = np.stack([np.repeat([[0.0, 0.0, 5.0, 5.0]], 4, axis=0)] * 3)


@pytest.mark.parametrize(
    ("image", "prob", "box", "expected"),
    [
        (FLAT, ALL * 0.99, ALL, ALL),
        (FLAT, ALL * 0.01, ALL, ALL * 0),
        (FLAT, ALL * 0.5, ALL, ALL * 0),
        (FLAT, ALL * 0.99, BOX, BOX * 0),
        (SPLIT, np.repeat([[0.3, 0.3, 0.7, 0.7]], 4, axis=0), ALL, SPLIT[0] / 5),
        (SPLIT, np.repeat([[0.4, 0.9, 0.1, 0.3]], 4, axis=0), ALL, 1 - SPLIT[0] / 5),
    ],
    ids=["sure object", "sure ground", "tie", "flooded by the outside", "two colours", "outvoted"],
)
def test_hand_drawn_maps(image: Array, prob: Array, box: Array, expected: Array) -> None:
    np.testing.assert_array_equal(run(image, prob, box, num_iters=20), expected)


def test_neighbours_outside_the_map_weigh_nothing() -> None:
    # A weight for pixels beyond the border would be a vote for the ground, or for black.
    prob = np.full((1, 1), 0.51)
    assert run(np.zeros((3, 1, 1)), prob, np.ones((1, 1)), kernel_size=5, num_iters=50) == 1
    corner = np.full((2, 2), 0.51)
    assert run(np.ones((3, 2, 2)), corner, np.ones((2, 2)), kernel_size=5).all()


def test_a_neighbour_of_quite_another_colour_does_not_break_a_tie() -> None:
    # Its weight is about 1e-31: as a power's exponent, it leaves 1.
    image = np.stack([np.array([[0.0, 1.19]])] * 1)
    assert run(image, np.array([[0.5, 0.9]]), np.ones((1, 2)), num_iters=1).tolist() == [[0, 1]]


@pytest.mark.parametrize("num_pixels", [1, 7, 30])
def test_a_line_cut_into_parts_gives_the_same_labels(
    num_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    image, prob, box = 0.3 * torch.randn(3, 3, 9, 8), torch.rand(3, 9, 8), torch.ones(3, 9, 8)
    label = partial(mean_field, image, prob, box, num_iters=9, dilations=(1, 2), start="balanced")
    whole = label()
    monkeypatch.setattr(mean_field_module, "CACHED_PIXELS", num_pixels)
    assert torch.equal(label(), whole)
    assert 0.2 < whole.mean() < 0.8


def test_one_can_learn_from_the_labels() -> None:
    image, prob, box = (torch.from_numpy(part)[None].float() for part in draw(1, 5, 5))
    label = mean_field(image, prob, box)
    (gradient,) = torch.autograd.grad((prob.requires_grad_() * label).sum(), prob)
    assert torch.equal(gradient, label)


def test_defaults_are_those_of_the_contract() -> None:
    image, prob, box = draw(3, 6, 6)
    explicit = {"kernel_size": 3, "zeta": 0.1, "num_iters": 100, "low": 0.1, "high": 0.9}
    np.testing.assert_array_equal(run(image, prob, box), run(image, prob, box, **explicit))


@pytest.mark.parametrize("rate", [0, 1.2, 100], ids=["alone", "as it is", "all at once"])
@pytest.mark.parametrize("empty", [None, 0, 1])
def test_items_of_a_batch_do_not_touch_each_other(
    rate: float, empty: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mean_field_module, "MAX_UNION_RATE", rate)
    drawn = [draw(seed, 6, 5) for seed in range(4)]
    if empty is not None:
        drawn[empty][2][:] = 0
    image, prob, box = (
        torch.from_numpy(np.stack(part)).float() for part in zip(*drawn, strict=True)
    )
    together = mean_field(image, prob, box, num_iters=7)
    for index, item in enumerate(drawn):
        np.testing.assert_array_equal(together[index].numpy(), run(*item, num_iters=7))


def test_inputs_stay_as_they_were() -> None:
    image, prob, box = (torch.from_numpy(part)[None].float() for part in draw(1, 5, 5))
    before = [tensor.clone() for tensor in (image, prob, box)]
    mean_field(image, prob, box)
    for tensor, copy in zip((image, prob, box), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("start", ["clamped", "balanced", "soft"])
@pytest.mark.parametrize("dilations", [(1,), (1, 2), (2, 4)])
def test_every_start_and_reach_stays_inside_the_box(start: str, dilations: tuple[int, ...]) -> None:
    image, prob, box = (torch.from_numpy(part)[None].float() for part in draw(5, 9, 9))
    label = mean_field(image, prob, box, num_iters=4, start=start, dilations=dilations)
    assert set(label.flatten().tolist()) <= {0.0, 1.0}
    assert not label[box == 0].any()


@pytest.mark.parametrize("kernel_size", [-1, 0, 2, 4])
def test_a_neighbourhood_without_a_centre_is_refused(kernel_size: int) -> None:
    map_BHW = torch.full((1, 4, 4), 0.5)
    with pytest.raises(ValueError, match=f"kernel_size must be odd .* got {kernel_size}"):
        mean_field(torch.zeros(1, 3, 4, 4), map_BHW, torch.ones(1, 4, 4), kernel_size=kernel_size)
