"""The mean field of a CRF whose neighbours are pixels of like colour.

Lan et al. 2023, eq. 5-7. In log-odds L = log(x / (1 - x)) an iteration of the products fg_i = t_i
prod_j x_j^k_ij, bg_i = prod_j (1 - x_j)^k_ij, x_i = fg / (fg + bg) is exactly a weighted sum and a
clamp: L_i <- clamp(sum_j k_ij L_j + log t_i). No logarithm or exponential is left inside the loop.

Shape letters: B items, C colour channels, H W map height and width, P pixels of padded maps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# How much larger than the items' own regions a shared one may be: from then on each has its own.
MAX_UNION_RATE = 1.2
# As many pixels as a thread's cache holds with all that an iteration reads for them.
CACHED_PIXELS = 80_000
CACHE_LINE_FLOATS = 16
# A smaller one is lost in rounding; denormal numbers would make a photograph half as fast.
SMALLEST_WEIGHT = 1e-20

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

    Raises:
        ValueError: `kernel_size` is even or below 1.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}. Use 3 or 5.")
    label_maps = functools.partial(
        _label_maps, kernel_size=kernel_size, zeta=zeta, num_iters=num_iters, low=low, high=high,
        dilations=dilations, start=start,
    )  # fmt: skip
    is_object_BHW = torch.zeros_like(box_mask_BHW, dtype=torch.bool)
    if known_BHW is not None:
        is_object_BHW = known_BHW > 0
        box_mask_BHW = torch.where(known_BHW == 0, box_mask_BHW, is_object_BHW.float())
    label_BHW = torch.zeros_like(prob_BHW, dtype=torch.float32)
    if image_BCHW.device.type != "cpu":  # finding the boxes would make the host wait
        return label_BHW.copy_(label_maps(image_BCHW, prob_BHW, box_mask_BHW, is_object_BHW))
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
    """Yield items to iterate together, and their region: all at once where regions nearly agree.

    One operation on all items is faster than one per item.
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
    """Return the rows and columns of a mask and its pixels' neighbours; None if it is empty.

    Outside the mask no label changes, so the rest need not be computed.
    """
    sides = []
    for axis in (1, 0):
        lines = is_inside_HW.any(axis).nonzero()
        if not len(lines):
            return None
        sides.append(slice(max(int(lines[0]) - reach, 0), int(lines[-1]) + 1 + reach))
    return sides[0], sides[1]


@torch.inference_mode()  # a tenth faster; what it returns is copied before anyone learns from it
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
    """Iterate over whole maps; the settings are those of `mean_field`."""
    low_logit, high_logit = math.log(low / (1 - low)), math.log(high / (1 - high))
    # To a pixel outside the box, or known, its neighbours are nothing: both clamps are one.
    floor_BHW = torch.where(is_object_BHW, high_logit, low_logit)
    ceiling_BHW = torch.where(box_mask_BHW < 0.5, low_logit, high_logit)
    logit_BHW = torch.logit(prob_BHW.float().clamp(low, high))
    if start == "balanced":
        logit_BHW = torch.where(logit_BHW > 0, high_logit, low_logit)
    num_items, height, width = prob_BHW.shape
    layout = _Layout(num_items, height, width, pad=kernel_size // 2 * max(dilations))
    offsets = _offsets(layout, kernel_size, dilations)
    weights = _weigh_pairs(image_BCHW, layout, offsets, zeta)
    floor, ceiling = layout.line_of(floor_BHW), layout.line_of(ceiling_BHW)
    line = layout.line_of(logit_BHW.clamp(floor_BHW, ceiling_BHW))
    lines = line, line.clone()
    # From one line to the other and back: views, so that an iteration copies nothing.
    turns = [
        [
            (
                old[part],
                new[part],
                [
                    (weights[abs(by)][_shift(part, min(by, 0))], old[_shift(part, by)])
                    for by in offsets
                ],
                floor[part],
                ceiling[part],
            )
            for part in _parts(layout.pixels, line.device)
        ]
        for old, new in (lines, lines[::-1])
    ]
    for iteration in range(num_iters):
        for own, new, neighbours, lowest, highest in turns[iteration % 2]:
            total = own
            for weight, value in neighbours:
                total = torch.addcmul(total, weight, value, out=new)
            torch.clamp(total, lowest, highest, out=new)
    return (layout.maps_of(lines[num_iters % 2]) > 0).float()


@dataclass(frozen=True)
class _Layout:
    """Padded maps laid end to end, row by row: a neighbour is a fixed distance away.

    Every operand of an iteration is then one contiguous run.
    """

    num_items: int
    height: int
    width: int
    pad: int

    @property
    def row(self) -> int:
        """Distance of the pixel below."""
        return self.width + 2 * self.pad

    @property
    def pixels(self) -> slice:
        """From the first pixel to behind the last one, with the padding between them."""
        margin = self.pad * (self.row + 1)
        return slice(margin + self._lead, self._lead + self._size - margin)

    @property
    def _size(self) -> int:
        return self.num_items * (self.height + 2 * self.pad) * self.row

    @property
    def _lead(self) -> int:
        """What puts the first pixel at the begin of a cache line: 1.2 times as fast."""
        return -self.pad * (self.row + 1) % CACHE_LINE_FLOATS

    def line_of(self, map_BHW: Tensor) -> Tensor:
        """Return the line of (..., B, H, W); the padding is 0."""
        line = map_BHW.new_zeros(*map_BHW.shape[:-3], self._lead + self._size)
        self.maps_of(line).copy_(map_BHW)
        return line

    def maps_of(self, line: Tensor) -> Tensor:
        """Return (..., B, H, W) of a line."""
        shape = (*line.shape[:-1], self.num_items, -1, self.row)
        padded = line[..., self._lead :].view(shape)
        rows, columns = (slice(self.pad, self.pad + side) for side in (self.height, self.width))
        return padded[..., rows, columns]


def _offsets(layout: _Layout, kernel_size: int, dilations: Sequence[int]) -> list[int]:
    """Return how far every neighbour but the pixel itself is away in a line."""
    reach = kernel_size // 2
    sides = range(-reach, reach + 1)
    return [
        dilation * (row * layout.row + column)
        for dilation in dilations
        for row in sides
        for column in sides
        if (row, column) != (0, 0)
    ]


def _weigh_pairs(
    image_BCHW: Tensor, layout: _Layout, offsets: Sequence[int], zeta: float
) -> dict[int, Tensor]:
    """Return the weight of each pixel and the one at a distance behind it, by distance.

    The weight is symmetric, so distances ahead need none. Padding has weight 0.
    """
    image_CP = layout.line_of(image_BCHW.float().transpose(0, 1))
    is_inside_P = layout.line_of(torch.ones_like(image_BCHW[:, 0], dtype=torch.float32))
    weights = {}
    for by in {abs(by) for by in offsets}:
        squares = ((channel[by:] - channel[:-by]).square_() for channel in image_CP)
        distance = functools.reduce(Tensor.add_, squares)
        weight = F.threshold(distance.mul_(-1 / (2 * zeta**2)).exp_(), SMALLEST_WEIGHT, 0)
        weights[by] = weight.mul_(is_inside_P[by:]).mul_(is_inside_P[:-by])
    return weights


def _parts(pixels: slice, device: torch.device) -> list[slice]:
    """Cut a line where the processor's cache holds a part of it and not the whole."""
    length = CACHED_PIXELS * torch.get_num_threads() if device.type == "cpu" else pixels.stop
    firsts = range(pixels.start, pixels.stop, length)
    return [slice(first, min(first + length, pixels.stop)) for first in firsts]


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
