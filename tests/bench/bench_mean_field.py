"""The mean field of 100 iterations: products as the paper writes them, and ours in log-odds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from harness import Result, compare
from torch import Tensor
from torch.nn import functional as F

from mal.model.mean_field import mean_field

REQUIRED = {(1, 128): 15, (4, 128): 25, (1, 512): 40}
# Between the areas of a photograph weights are denormal numbers, which are slow to multiply.
IMAGES = {"": "bilinear", ", hard edges": "nearest"}
MARGIN = 0.6  # of train.test_margin_rate: the box takes 1 / 1.3 of the crop's side


def run() -> Iterator[Result]:
    for (kind, mode), ((num_items, size), required) in product(IMAGES.items(), REQUIRED.items()):
        image, prob, box_mask = _draw(num_items, size, mode)
        expected = literal_mean_field(image, prob, box_mask)
        found = mean_field(image, prob, box_mask)
        yield compare(
            f"B {num_items}, {size} x {size}{kind}",
            partial(literal_mean_field, image, prob, box_mask),
            partial(mean_field, image, prob, box_mask),
            required=required,
            repeats=5 if size == 128 else 3,
            different_pixels=float((expected != found).float().mean()),
        )


def literal_mean_field(
    image_BCHW: Tensor, prob_BHW: Tensor, box_mask_BHW: Tensor, *,
    kernel_size: int = 3, zeta: float = 0.1, num_iters: int = 100, low: float = 0.1,
    high: float = 0.9,
) -> Tensor:  # fmt: skip
    """Return the label as Lan et al. 2023 write it: products of powers, each iteration."""
    _, _, H, W = image_BCHW.shape
    pad, taps = kernel_size // 2, kernel_size**2

    def neighbours(value_BCHW: Tensor) -> Tensor:
        unfolded = F.unfold(value_BCHW, kernel_size, padding=pad)
        return unfolded.view(len(value_BCHW), -1, taps, H, W)

    inside = neighbours(torch.ones(1, 1, H, W))[:, 0]
    distance = (neighbours(image_BCHW) - image_BCHW[:, :, None]).square().sum(1)
    kernel = torch.exp(-distance / (2 * zeta**2)) * inside
    x = (prob_BHW * box_mask_BHW).clamp(low, high)
    for _ in range(num_iters):
        x_taps = neighbours(x[:, None])[:, 0].clamp(low, high)
        foreground = box_mask_BHW * (kernel * x_taps.log()).sum(1).exp()
        background = (kernel * (1 - x_taps).log()).sum(1).exp()
        x = (foreground / (foreground + background)).clamp(low, high)
    return (x > 0.5).float()


def _draw(num_items: int, size: int, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise as image and start, and the box of a prediction window."""
    torch.manual_seed(0)
    cells = (num_items, 3, size // 8, size // 8)
    image = F.interpolate(torch.randn(cells), size=(size, size), mode=mode)
    image += 0.05 * torch.randn(num_items, 3, size, size)
    prob = F.interpolate(torch.rand(cells)[:, :1], size=(size, size), mode="bilinear")[:, 0]
    box_mask = torch.zeros(num_items, size, size)
    edge = round(size * (1 - 1 / (1 + MARGIN / 2)) / 2)
    box_mask[:, edge : size - edge, edge : size - edge] = 1
    return image, prob, box_mask
