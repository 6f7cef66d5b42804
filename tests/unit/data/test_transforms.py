from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional  # type: ignore[import-untyped]

from mal.data import transforms
from mal.data.transforms import adjust, augment_colours, blur, jitter_colours

SMALLEST_RADIUS, LARGEST_RADIUS, BLUR_REACH = 0.1, 2.0, 6


def crop(size_px: int = 12, seed: int = 0) -> Tensor:
    """Noise on soft colours, with black, white and grey parts."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    levels = np.array(soft.resize((size_px, size_px))) + rng.normal(0, 30, (size_px, size_px, 3))
    levels[:2], levels[-2:], levels[:, :2] = 0, 255, levels[:, :2, :1]
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def image_of(crop_CSS: Tensor) -> Image.Image:
    return Image.fromarray(crop_CSS.permute(1, 2, 0).contiguous().numpy())


def tensor_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@given(
    st.sampled_from(["brightness", "contrast", "saturation", "hue"]),
    st.floats(-1, 1),
    st.integers(0, 99),
)
def test_every_change_is_torchvisions(name: str, draw: float, seed: int) -> None:
    factor = draw * 0.1 if name == "hue" else 1 + draw * 0.4
    original = crop(seed=seed)
    expected = getattr(functional, f"adjust_{name}")(original.float() / 255, factor) * 255
    # torchvision's luma weights add up to 0.9999: 0.03 levels of white, 0.4 times
    torch.testing.assert_close(adjust(name, original.float(), factor), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("num_pixels", [1, 40, 10**6])
def test_a_crop_changed_in_parts_is_the_same(
    num_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed() -> list[Tensor]:
        factors = {"saturation": 1.1, "brightness": 1.1, "hue": 0.07}
        colours = [adjust(name, crop(20).float(), factor) for name, factor in factors.items()]
        return [*colours, blur(crop(20), 1.3)]

    whole = changed()
    monkeypatch.setattr(transforms, "CACHED_FLOATS", num_pixels)
    monkeypatch.setattr(transforms, "CACHED_SHORTS", num_pixels)
    assert all(map(torch.equal, changed(), whole))


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_the_jitter_is_torchvisions_in_the_order_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reaches = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    draws = {name: rng.uniform(-reach, reach) for name, reach in reaches.items()}
    expected = crop(seed=seed % 7).float() / 255
    for place in rng.permutation(4):
        name = list(reaches)[place]
        factor = draws[name] + (name != "hue")
        expected = getattr(functional, f"adjust_{name}")(expected, factor)
    found = jitter_colours(crop(seed=seed % 7), np.random.default_rng(seed))
    torch.testing.assert_close(found.float(), expected * 255, atol=0.6, rtol=0)


@given(st.floats(SMALLEST_RADIUS, LARGEST_RADIUS), st.integers(0, 99))
def test_the_blur_is_pillows_up_to_rounding(radius_px: float, seed: int) -> None:
    original = crop(36, seed)
    expected = tensor_of(image_of(original).filter(ImageFilter.GaussianBlur(radius_px)))
    difference = (blur(original, radius_px).int() - expected.int()).abs()
    # Pillow rounds after each of its six passes; ours has weights of 7 bits.
    inside = difference[:, BLUR_REACH:-BLUR_REACH, BLUR_REACH:-BLUR_REACH]
    assert inside.max() <= 4
    assert inside.float().mean() < 1.5
    # Pillow extends the edge anew for each pass, ours once.
    assert difference.max() <= 40


@pytest.mark.parametrize("level", [0, 1, 254, 255])
@pytest.mark.parametrize("radius_px", [SMALLEST_RADIUS, 0.9, LARGEST_RADIUS])
def test_a_plain_crop_stays_as_it_is_when_blurred(level: int, radius_px: float) -> None:
    plain = torch.full((3, 9, 9), level, dtype=torch.uint8)
    assert torch.equal(blur(plain, radius_px), plain)


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=50)
def test_the_same_generator_state_changes_a_crop_alike(seed: int, rate: float) -> None:
    original = crop()
    first = augment_colours(original, rate, np.random.default_rng(seed))
    second = augment_colours(original, rate, np.random.default_rng(seed))
    assert torch.equal(first, second)
    assert torch.equal(original, crop())
    assert first.shape == original.shape
    assert first.dtype == torch.uint8
    assert first.is_contiguous()


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_rate_zero_changes_nothing(seed: int) -> None:
    changed = augment_colours(crop(), 0.0, np.random.default_rng(seed))
    assert torch.equal(changed, crop())


@pytest.mark.parametrize(("rate", "share"), [(1.0, 0.8), (0.5, 0.4875)])
def test_crops_change_as_often_as_the_probabilities_say(rate: float, share: float) -> None:
    rng = np.random.default_rng(3)
    changed = [bool((augment_colours(crop(), rate, rng) != crop()).any()) for _ in range(400)]
    assert np.mean(changed) == pytest.approx(share, abs=0.08)


def test_a_fifth_of_the_crops_is_grey() -> None:
    rng = np.random.default_rng(4)
    crops = [augment_colours(crop(), 1.0, rng) for _ in range(400)]
    assert np.mean([bool((c == c[:1]).all()) for c in crops]) == pytest.approx(0.2, abs=0.06)


def test_geometry_stays() -> None:
    """A bright spot stays where it is, whatever is drawn."""
    image = torch.zeros(3, 15, 15, dtype=torch.uint8)
    image[:, 3, 11] = 255
    for seed in range(40):
        brightness = augment_colours(image, 1.0, np.random.default_rng(seed)).sum(dim=0)
        assert brightness[3, 11] == brightness.max()
