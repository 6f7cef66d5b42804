"""The label that the student learns from: student and teacher agreed, sharpened by the image.

Shape letters: B items, M side of the mask map, D width, h w token grid, N = h * w tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mal.model.color import lab_from_normalized
from mal.model.heads import resize_to
from mal.model.mean_field import mean_field
from mal.spec.experiment import TrainSpec


@torch.no_grad()
def make_pseudo_label(
    prob_BMM: Tensor,
    box_mask_BMM: Tensor,
    image_BCSS: Tensor,
    tokens_BDhw: Tensor,
    train: TrainSpec,
) -> Tensor:
    """Sharpen the mean of student and teacher into a label of 0 and 1, (B, M, M).

    Args:
        prob_BMM: Mean probability of student and teacher.
        box_mask_BMM: 0 or 1.
        image_BCSS: Normalised RGB that the colours are taken from.
        tokens_BDhw: Deep features, for the affinity of tokens.
        train: The spec's CRF settings.
    """
    size = prob_BMM.shape[-1] * train.crf_size_ratio
    start_BMM = prob_BMM.float() * box_mask_BMM
    if train.affinity_weight:
        spread_BMM = spread_over_tokens(start_BMM, tokens_BDhw, train.affinity_temperature)
        start_BMM = torch.lerp(start_BMM, spread_BMM, train.affinity_weight)
    colours = resize_to(image_BCSS.float(), (size, size))
    if train.crf_color_space == "lab":
        colours = lab_from_normalized(colours)
    label = mean_field(
        colours,
        resize_to(start_BMM[:, None], (size, size))[:, 0],
        (resize_to(box_mask_BMM[:, None], (size, size))[:, 0] >= 0.5).float(),
        kernel_size=train.crf_kernel_size,
        zeta=train.crf_zeta,
        num_iters=train.crf_num_iter,
        low=train.crf_value_low_thres,
        high=train.crf_value_high_thres,
        dilations=train.crf_dilations,
        start=train.crf_start,
    )
    return (resize_to(label[:, None], prob_BMM.shape[-2:])[:, 0] >= 0.5).float()


def token_affinity(tokens_BDhw: Tensor, temperature: float) -> Tensor:
    """Return how alike each pair of tokens is: exp((cos - 1) / T), each row summing to 1.

    Returns:
        (B, N, N); rows average over their columns.
    """
    unit_BDN = F.normalize(tokens_BDhw.float().flatten(2), dim=1)
    cosine_BNN = unit_BDN.transpose(1, 2) @ unit_BDN
    weight_BNN = ((cosine_BNN - 1) / temperature).exp_()
    return weight_BNN / weight_BNN.sum(2, keepdim=True)


def spread_over_tokens(map_BMM: Tensor, tokens_BDhw: Tensor, temperature: float) -> Tensor:
    """Replace each place of a map by the mean over the tokens like its own, (B, M, M)."""
    grid = tokens_BDhw.shape[-2:]
    token_value_BN = F.adaptive_avg_pool2d(map_BMM[:, None], grid).flatten(1)
    affinity_BNN = token_affinity(tokens_BDhw, temperature)
    spread_BN = torch.bmm(affinity_BNN, token_value_BN[:, :, None])
    return resize_to(spread_BN.view(-1, 1, *grid), map_BMM.shape[-2:])[:, 0]
