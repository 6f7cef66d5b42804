"""Colour spaces of the CRF."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mal.data.batch import imagenet_constants_on

# sRGB (D65) to XYZ, IEC 61966-2-1, with each row divided by the white point.
_XYZ_FROM_RGB = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / torch.tensor([[0.950456], [1.0], [1.088754]])


def lab_from_normalized(image_BCHW: Tensor) -> Tensor:
    """Convert ImageNet-normalised RGB to CIELAB / 100: L in [0, 1], a and b about [-1, 1].

    Equal distances are about equally visible, unlike in RGB, so the CRF joins shades and shadows of
    one object.
    """
    mean, std = imagenet_constants_on(image_BCHW.device)
    rgb = (image_BCHW.float() * std + mean).clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", _xyz_from_rgb_on(image_BCHW.device), linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    lightness = 1.16 * f[:, 1] - 0.16
    return torch.stack([lightness, 5 * (f[:, 0] - f[:, 1]), 2 * (f[:, 1] - f[:, 2])], 1)


@functools.cache
@torch.inference_mode(False)
def _xyz_from_rgb_on(device: torch.device) -> Tensor:
    """Return the matrix on a device; copied once, since each copy makes the host wait."""
    return _XYZ_FROM_RGB.to(device)
