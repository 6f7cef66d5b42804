"""The mean field of a CRF whose neighbours are pixels of like colour.

Lan et al. 2023, eq. 5-7. In log-odds L = log(x / (1 - x)) an iteration of the products fg_i = t_i
prod_j x_j^k_ij, bg_i = prod_j (1 - x_j)^k_ij, x_i = fg / (fg + bg) is exactly a weighted sum and a
clamp: L_i <- clamp(sum_j k_ij L_j + log t_i). No logarithm or exponential is left inside the loop.

Shape letters: B items, C colour channels, H W map height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Neighbour = tuple[int, int, Tensor]


def mean_field(
    image_BCHW: Tensor,
    prob_BHW: Tensor,
    box_mask_BHW: Tensor,
    *,
    kernel_size: int = 3,
    zeta: float = 0.1,
    num_iters: int = 100,
    low: float = 0.1,
    high: float = 0.9,
    dilations: Sequence[int] = (1,),
    start: str = "clamped",
) -> Tensor:
    """Sharpen a probability map along the colours of its image, inside the box.

    Args:
        image_BCHW: Colours: normalised RGB (the paper) or CIELAB / 100.
        prob_BHW: Where the iteration starts, in [0, 1].
        box_mask_BHW: 0 or 1; outside the box nothing can become object.
        kernel_size: Side of the neighbourhood, odd; the pixel itself belongs to it.
        zeta: Colour bandwidth, in units of the image.
        num_iters: Iterations.
        low: Lower clamp of the probabilities.
        high: Upper clamp.
        dilations: Distances of the neighbours; the neighbourhoods of several are summed.
        start: clamped: the probabilities (the paper). balanced: only their side of 0.5, at the
            clamps; an undecided map is then not flooded by the certain outside. soft: as clamped.

    Returns:
        1 where the pixel ends above one half, else 0; (B, H, W).
    """
    neighbours = weigh_neighbours(image_BCHW, kernel_size, zeta, dilations)
    low_logit, high_logit = math.log(low / (1 - low)), math.log(high / (1 - high))
    outside_BHW = box_mask_BHW < 0.5
    logit_BHW = torch.logit(prob_BHW.float().clamp(low, high))
    if start == "balanced":
        logit_BHW = torch.where(logit_BHW > 0, high_logit, low_logit)
    logit_BHW = logit_BHW.masked_fill(outside_BHW, low_logit)
    for _ in range(num_iters):
        logit_BHW = sum_neighbours(logit_BHW, neighbours)
        logit_BHW = logit_BHW.clamp_(low_logit, high_logit).masked_fill_(outside_BHW, low_logit)
    return (logit_BHW > 0).float()


def weigh_neighbours(
    image_BCHW: Tensor, kernel_size: int, zeta: float, dilations: Sequence[int]
) -> list[Neighbour]:
    """Return offset (y, x) and weight (B, H, W) of every neighbour but the pixel itself.

    A neighbour outside the map weighs nothing.
    """
    height, width = image_BCHW.shape[-2:]
    reach = kernel_size // 2
    inside_HW = torch.ones(1, 1, height, width, device=image_BCHW.device)
    neighbours: list[Neighbour] = []
    for dilation in dilations:
        pad = reach * dilation
        padded_BCHW = F.pad(image_BCHW.float(), (pad, pad, pad, pad))
        padded_inside = F.pad(inside_HW, (pad, pad, pad, pad))[:, 0]
        for row in range(-reach, reach + 1):
            for column in range(-reach, reach + 1):
                if row == column == 0:
                    continue
                y, x = row * dilation, column * dilation
                ys, xs = slice(pad + y, pad + y + height), slice(pad + x, pad + x + width)
                distance_BHW = (padded_BCHW[:, :, ys, xs] - image_BCHW).square().sum(1)
                weight_BHW = torch.exp(-distance_BHW / (2 * zeta**2)) * padded_inside[:, ys, xs]
                neighbours.append((y, x, weight_BHW))
    return neighbours


def sum_neighbours(value_BHW: Tensor, neighbours: Sequence[Neighbour]) -> Tensor:
    """Return the value of every pixel plus the weighted values of its neighbours."""
    height, width = value_BHW.shape[-2:]
    pad = max((max(abs(y), abs(x)) for y, x, _ in neighbours), default=0)
    padded_BHW = F.pad(value_BHW, (pad, pad, pad, pad))
    total_BHW = value_BHW.clone()
    for y, x, weight_BHW in neighbours:
        ys, xs = slice(pad + y, pad + y + height), slice(pad + x, pad + x + width)
        total_BHW.addcmul_(weight_BHW, padded_BHW[:, ys, xs])
    return total_BHW
