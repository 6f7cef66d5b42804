"""The student's photometric augmentation (Lan et al. 2023): colour jitter, greyscale, blur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.transforms import functional  # type: ignore[import-untyped]

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
JITTER_PROBABILITY, GREY_PROBABILITY, BLUR_PROBABILITY = 0.5, 0.2, 0.5
BLUR_RADIUS_PX = (0.1, 2.0)


def augment_colours(
    crop: NDArray[np.uint8], rate: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change colours and sharpness of a crop, never its geometry.

    Args:
        crop: (S, S, 3) uint8 RGB.
        rate: 0..1, scales the probability of each change.
        rng: The item's own generator: the same item of the same epoch always changes alike.
    """
    draws = rng.uniform(size=3)
    image = Image.fromarray(crop)
    if draws[0] < JITTER_PROBABILITY * rate:
        image = _jitter_colours(image, rng)
    if draws[1] < GREY_PROBABILITY * rate:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if draws[2] < BLUR_PROBABILITY * rate:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS_PX)))
    return np.array(image, dtype=np.uint8)


def _jitter_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factors = {
        name: rng.uniform(-reach, reach) + (0 if name == "hue" else 1)
        for name, reach in JITTER.items()
    }
    for position in rng.permutation(len(JITTER)):
        name = list(JITTER)[position]
        image = getattr(functional, f"adjust_{name}")(image, factors[name])
    return image
