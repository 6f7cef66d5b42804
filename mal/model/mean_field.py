"""The mean field of a CRF whose neighbours are pixels of like colour.

Lan et al. 2023, eq. 5-7. In log-odds L = log(x / (1 - x)) an iteration of the products fg_i = t_i
prod_j x_j^k_ij, bg_i = prod_j (1 - x_j)^k_ij, x_i = fg / (fg + bg) is exactly a weighted sum and a
clamp: L_i <- clamp(sum_j k_ij L_j + log t_i). No logarithm or exponential is left inside the loop.

Shape letters: B items, C colour channels, H W map height and width, P pixels of a padded map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

# How much larger than the items' own regions a shared one may be: from then on each has its own.
MAX_UNION_RATE = 1.2

Neighbour = tuple[int, int, Tensor]
Region = tuple[slice, slice]


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
    known_BHW: Tensor | None = None,
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
        known_BHW: 1 where a pixel is known to be object, -1 where not, else 0. Such a pixel stays
            at its clamp, whatever box and neighbours say.

    Returns:
        1 where the pixel ends above one half, else 0; (B, H, W).
    """
    label_maps = partial(
        _label_maps, kernel_size=kernel_size, zeta=zeta, num_iters=num_iters, low=low, high=high,
        dilations=dilations, start=start,
    )  # fmt: skip
    is_object_BHW = torch.zeros_like(box_mask_BHW, dtype=torch.bool)
    if known_BHW is not None:
        is_object_BHW = known_BHW > 0
        box_mask_BHW = torch.where(known_BHW == 0, box_mask_BHW, is_object_BHW.float())
    if image_BCHW.device.type != "cpu":  # finding the boxes would make the host wait
        return label_maps(image_BCHW, prob_BHW, box_mask_BHW, is_object_BHW)
    label_BHW = torch.zeros_like(prob_BHW, dtype=torch.float32)
    reach = kernel_size // 2 * max(dilations)
    regions = {
        item: region
        for item, box_mask_HW in enumerate(box_mask_BHW)
        if (region := _region_around(box_mask_HW >= 0.5, reach)) is not None
    }
    for items, (rows, columns) in _share_regions(regions):
        label_BHW[items, rows, columns] = label_maps(
            image_BCHW[items, :, rows, columns],
            prob_BHW[items, rows, columns],
            box_mask_BHW[items, rows, columns],
            is_object_BHW[items, rows, columns],
        )
    return label_BHW


def _share_regions(regions: Mapping[int, Region]) -> Iterator[tuple[slice, Region]]:
    """Yield items to iterate together, and where: all at once where their regions are much alike.

    An operation for all of them costs less than one for each.
    """
    if not regions:
        return
    union_rows, union_columns = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*regions.values(), strict=True)
    )
    own_size = sum(_num_pixels(region) for region in regions.values())
    items = slice(min(regions), max(regions) + 1)
    union = union_rows, union_columns
    if (items.stop - items.start) * _num_pixels(union) <= MAX_UNION_RATE * own_size:
        yield items, union
        return
    for item, region in regions.items():
        yield slice(item, item + 1), region


def _num_pixels(region: Region) -> int:
    return math.prod(side.stop - side.start for side in region)


def _region_around(is_inside_HW: Tensor, reach: int) -> Region | None:
    """Return rows and columns of a mask and of all that its pixels look at; None if it is empty.

    Outside the mask nothing ever changes, so that the labels are the same without the rest.
    """
    sides = []
    for axis in (1, 0):
        lines = is_inside_HW.any(axis).nonzero()
        if not len(lines):
            return None
        sides.append(slice(max(int(lines[0]) - reach, 0), int(lines[-1]) + 1 + reach))
    return sides[0], sides[1]


def _label_maps(
    image_BCHW: Tensor,
    prob_BHW: Tensor,
    box_mask_BHW: Tensor,
    is_object_BHW: Tensor,
    *,
    kernel_size: int,
    zeta: float,
    num_iters: int,
    low: float,
    high: float,
    dilations: Sequence[int],
    start: str,
) -> Tensor:
    """Iterate over a whole map; the settings are those of `mean_field`."""
    height, width = prob_BHW.shape[-2:]
    low_logit, high_logit = math.log(low / (1 - low)), math.log(high / (1 - high))
    logit_BHW = torch.logit(prob_BHW.float().clamp(low, high))
    if start == "balanced":
        logit_BHW = torch.where(logit_BHW > 0, high_logit, low_logit)
    is_outside_BHW = box_mask_BHW < 0.5
    logit_BHW = logit_BHW.masked_fill(is_outside_BHW, low_logit)
    logit_BHW = logit_BHW.masked_fill(is_object_BHW, high_logit)
    is_fixed_BHW = is_outside_BHW | is_object_BHW
    # A neighbour is a fixed distance away in the rows of a padded map laid end to end: every
    # operand below is one contiguous run, and two maps take turns without a copy.
    pad = kernel_size // 2 * max(dilations)
    row = width + 2 * pad
    first, size = pad * row + pad, height * row - 2 * pad
    neighbours = weigh_neighbours(image_BCHW, kernel_size, zeta, dilations)

    def run_of(map_BHW: Tensor) -> Tensor:
        return F.pad(map_BHW, (pad, pad, pad, pad)).flatten(1)[:, first : first + size]

    # To a pixel outside the box, or known, its neighbours are nothing: it stays at its clamp.
    weights_BP = [
        run_of(weight_BHW.masked_fill(is_fixed_BHW, 0)) for _, _, weight_BHW in neighbours
    ]
    old_BQ = F.pad(logit_BHW, (pad, pad, pad, pad)).flatten(1)
    maps = [old_BQ, old_BQ.clone()]
    own_BP = [map_BQ[:, first : first + size] for map_BQ in maps]
    neighbours_BP = [
        [map_BQ[:, first + y * row + x :][:, :size] for y, x, _ in neighbours] for map_BQ in maps
    ]
    for iteration in range(num_iters):
        old, new = iteration % 2, 1 - iteration % 2
        total_BP = own_BP[old]
        for weight_BP, value_BP in zip(weights_BP, neighbours_BP[old], strict=True):
            total_BP = torch.addcmul(total_BP, weight_BP, value_BP, out=own_BP[new])
        total_BP.clamp_(low_logit, high_logit)
    end_BHW = maps[num_iters % 2].view(-1, height + 2 * pad, row)
    return (end_BHW[:, pad : pad + height, pad : pad + width] > 0).float()


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
