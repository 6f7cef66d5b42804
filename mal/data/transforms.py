"""The student's photometric augmentation (Lan et al. 2023): colour jitter, greyscale, blur.

The changes are those of torchvision's transforms. These convert to Pillow's images and back, which
takes most of an item's time; here they work on whole planes.

Shape letters: C = 3 channels, P some of them, S crop side (px), R some of its rows, K weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
JITTER_PROBABILITY, GREY_PROBABILITY, BLUR_PROBABILITY = 0.5, 0.2, 0.5
BLUR_RADIUS_PX = (0.1, 2.0)

# So many values stay in the processor's cache: floats of colours, and 16-bit integers of the blur.
CACHED_FLOATS = 51_200
CACHED_SHORTS = 262_144

_GREY_WEIGHTS = (0.299, 0.587, 0.114)
_NUM_BOX_BLURS = 3
_WEIGHT_BITS = 7  # 255 << 7 is the most that 16 bits with a sign hold


def augment_colours(crop_CSS: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    """Change colours and sharpness of a crop, never its geometry.

    Args:
        crop_CSS: uint8 RGB.
        rate: 0..1, scales the probability of each change.
        rng: The item's own generator, so that the same item of the same epoch changes equally.
    """
    draws = rng.uniform(size=3)
    if draws[0] < JITTER_PROBABILITY * rate:
        crop_CSS = jitter_colours(crop_CSS, rng)
    if draws[1] < GREY_PROBABILITY * rate:
        crop_CSS = _round_to_bytes(_grey_of(crop_CSS.float()))
    if draws[2] < BLUR_PROBABILITY * rate:
        crop_CSS = blur(crop_CSS, rng.uniform(*BLUR_RADIUS_PX))
    return crop_CSS.expand(3, -1, -1).contiguous()


def jitter_colours(crop_CSS: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue in random order."""
    factors = {
        name: rng.uniform(-reach, reach) + (0 if name == "hue" else 1)
        for name, reach in JITTER.items()
    }
    values_CSS = crop_CSS.float()
    for position in rng.permutation(len(JITTER)):
        name = list(JITTER)[position]
        values_CSS = adjust(name, values_CSS, factors[name])
    return _round_to_bytes(values_CSS)


def adjust(name: str, values_CSS: Tensor, factor: float) -> Tensor:
    """Do what torchvision's `adjust_<name>` does to values 0..255, in place."""
    if name == "contrast":
        values_CSS *= factor
        values_CSS += (1 / factor - 1) * _grey_of(values_CSS).mean()
        return values_CSS.clamp_(0, 255)
    num_rows = max(CACHED_FLOATS // values_CSS.shape[-1], 1)
    for rows_CRS in torch.split(values_CSS, num_rows, 1):
        if name == "hue":
            _turn_hue(rows_CRS, factor)
            continue
        rows_CRS *= factor  # noqa: PLW2901 - a view
        if name == "saturation":
            rows_CRS += (1 / factor - 1) * _grey_of(rows_CRS)  # noqa: PLW2901
        rows_CRS.clamp_(0, 255)
    return values_CSS


def blur(crop_CSS: Tensor, radius_px: float) -> Tensor:
    """Blur as `PIL.ImageFilter.GaussianBlur` does, in integers of 16 bits.

    Beyond the edges lie copies of them; Pillow makes new ones in each of its passes.
    """
    weights_K = _blur_weights(radius_px)
    num_planes = max(CACHED_SHORTS // crop_CSS[0].numel(), 1)
    parts = torch.split(crop_CSS, num_planes)
    return torch.cat([_blur_planes(planes_PSS, weights_K) for planes_PSS in parts])


def _blur_planes(planes_PSS: Tensor, weights_K: NDArray[np.int64]) -> Tensor:
    side = planes_PSS.shape[-1]
    reach = len(weights_K) // 2
    edges = ((0, 0), (reach, reach), (reach, reach))
    values = torch.from_numpy(np.pad(planes_PSS.numpy(), edges, mode="edge")).short()
    for axis in (1, 2):
        total = torch.full_like(values.narrow(axis, 0, side), 1 << (_WEIGHT_BITS - 1))
        for offset, weight in enumerate(weights_K.tolist()):
            if weight:
                total.add_(values.narrow(axis, offset, side), alpha=weight)
        values = total >> _WEIGHT_BITS
    return values.byte()


def _blur_weights(radius_px: float) -> NDArray[np.int64]:
    """Return Pillow's Gaussian, three box blurs of fractional width, as parts of 2^7.

    The width of the box gives the three together the variance radius_px^2 (Gwosdek et al. 2011).
    """
    variance = radius_px**2 / _NUM_BOX_BLURS
    num_whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * num_whole + 1) * (num_whole * (num_whole + 1) - 3 * variance)
    edge /= 6 * (variance - (num_whole + 1) ** 2)
    box = np.array([edge, *[1.0] * (2 * num_whole + 1), edge])
    weights = np.convolve(np.convolve(box, box), box) / box.sum() ** _NUM_BOX_BLURS
    parts: NDArray[np.int64] = np.rint(weights * (1 << _WEIGHT_BITS)).astype(np.int64)
    parts[len(parts) // 2] += (1 << _WEIGHT_BITS) - parts.sum()
    return parts


def _turn_hue(values_CSS: Tensor, factor: float) -> None:
    """Turn the colour wheel by `factor` of a circle; lightest and darkest values stay.

    Around the wheel a channel is a trapezoid: high up to a sixth of the circle from its own colour,
    low from two sixths on. A pixel's channel therefore lies at 2 x - mid of the trapezoid's
    unclamped slope, and a turn moves it along by its share of high - low: upwards for the channel
    that the wheel turns to. That holds for turns of up to a sixth; hues need no division.
    """
    red, green, blue = values_CSS
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    negative_middle = (high + low).sub_(red).sub_(green).sub_(blue)
    step = (high - low).mul_(-6 * factor)
    ahead_CSS = torch.empty_like(values_CSS)  # which way along its slope each channel goes
    for channel in range(3):
        torch.sub(values_CSS[channel - 2], values_CSS[channel - 1], out=ahead_CSS[channel])
    ahead_CSS.sign_()
    torch.add(negative_middle, values_CSS, alpha=2, out=values_CSS)
    values_CSS.addcmul_(step, ahead_CSS)
    torch.clamp(values_CSS, low, high, out=values_CSS)


def _grey_of(values_CSS: Tensor) -> Tensor:
    """Return the luma, (1, S, S)."""
    red, green, blue = _GREY_WEIGHTS
    grey = values_CSS[0] * red
    return grey.add_(values_CSS[1], alpha=green).add_(values_CSS[2], alpha=blue)[None]


def _round_to_bytes(values_CSS: Tensor) -> Tensor:
    """Round to uint8, in place; numpy's conversion takes a seventh of torch's time."""
    return torch.from_numpy(values_CSS.add_(0.5).numpy().astype(np.uint8))
