"""Corrects masks by labelled points, beyond the pixels under the points.

Shape letters: B items, K points, M side of the mask map, D backbone width, h w token grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mal.model.heads import resize_to
from mal.model.losses import sample_at_points

# Chosen on two sets, see docs/results.md: a quarter of the crop, tokens of like direction.
REACH = 0.25
TOKEN_TEMPERATURE = 0.2
MARGIN = 2.0
NOISE = 0.1

_MIN_PROBABILITY = 1e-4
_NUM_SOLVER_STEPS = 24
_TINY = 1e-12


def known_pixels(point_BK3: Tensor, size_px: int) -> Tensor:
    """Return 1 for map pixels with points on the object, -1 for those off it, else 0; (B, M, M).

    A pixel with as many of one as of the other is 0.
    """
    column_BK, row_BK = (point_BK3[:, :, :2] * size_px).long().clamp(0, size_px - 1).unbind(2)
    vote_BK = _sign_of(point_BK3)
    votes_BP = torch.zeros(len(point_BK3), size_px**2, device=point_BK3.device)
    votes_BP = votes_BP.scatter_add(1, row_BK * size_px + column_BK, vote_BK)
    return votes_BP.sign().view(-1, size_px, size_px)


def refine_by_points(
    prob_BMM: Tensor,
    tokens_BDhw: Tensor,
    point_BK3: Tensor,
    thresholds: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """Correct probabilities so that points get their label, and similar pixels follow.

    The log-odds are corrected as by a Gaussian process whose observation at each point is what is
    missing to a margin beyond the threshold, 0 where the mask is right already. Two pixels are
    similar if they are near and the cosine of their tokens is high.

    Args:
        prob_BMM: Mask probabilities, in [0, 1].
        tokens_BDhw: Last feature map of the same crop.
        point_BK3: x and y as 0..1 of the map, and 1 on the object, 0 off it, -1 no point.
        thresholds: Lowest and highest probability from which a pixel may be taken for object.

    Returns:
        The same shape; an item without points only leaves the extremes 0 and 1.
    """
    prob_BMM, point_BK3 = prob_BMM.float(), point_BK3.float()
    logits_BMM = torch.logit(prob_BMM.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY))
    found_BK = sample_at_points(logits_BMM[:, None], point_BK3)[:, 0]
    lowest, highest = (_log_odds(threshold) for threshold in thresholds)
    missing_BK = torch.where(
        point_BK3[:, :, 2] > 0,
        (highest + MARGIN - found_BK).clamp(min=0),
        (lowest - MARGIN - found_BK).clamp(max=0),
    )
    missing_BK = missing_BK * _sign_of(point_BK3).abs()
    among_BKK, to_map_BKMM = _similarity(tokens_BDhw.float(), point_BK3, prob_BMM.shape[-1])
    weight_BK = _solve(among_BKK, missing_BK)
    return (logits_BMM + torch.einsum("bk,bkhw->bhw", weight_BK, to_map_BKMM)).sigmoid()


def _log_odds(threshold: float) -> float:
    bounded = min(max(threshold, 0.01), 0.99)
    return math.log(bounded / (1 - bounded))


def _sign_of(point_BK3: Tensor) -> Tensor:
    """Return 1 for points on the object, -1 off it, 0 for no point."""
    label_BK = point_BK3[:, :, 2]
    return torch.where(label_BK < 0, torch.zeros_like(label_BK), label_BK * 2 - 1)


def _similarity(tokens_BDhw: Tensor, point_BK3: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the similarity among the points, (B, K, K), and to the map, (B, K, M, M)."""
    map_BDMM = F.normalize(resize_to(tokens_BDhw, (size, size)), dim=1)
    token_BDK = F.normalize(sample_at_points(tokens_BDhw, point_BK3), dim=1)
    centre_M = (torch.arange(size, device=tokens_BDhw.device) + 0.5) / size
    x_BK, y_BK = point_BK3[:, :, 0], point_BK3[:, :, 1]

    def near(distance_x: Tensor, distance_y: Tensor) -> Tensor:
        return -(distance_x.square() + distance_y.square()) / (2 * REACH**2)

    among = near(x_BK[:, :, None] - x_BK[:, None, :], y_BK[:, :, None] - y_BK[:, None, :])
    to_map = near(x_BK[:, :, None, None] - centre_M, y_BK[:, :, None, None] - centre_M[:, None])
    among = among + (torch.einsum("bdk,bdl->bkl", token_BDK, token_BDK) - 1) / TOKEN_TEMPERATURE
    similar_map = torch.einsum("bdk,bdhw->bkhw", token_BDK, map_BDMM)
    to_map = to_map + (similar_map - 1) / TOKEN_TEMPERATURE
    is_point_BK = _sign_of(point_BK3).abs()
    return among.exp() * is_point_BK[:, :, None] * is_point_BK[:, None, :], to_map.exp()


def _solve(similarity_BKK: Tensor, missing_BK: Tensor) -> Tensor:
    """Solve (similarity + NOISE) weight = missing by conjugate gradients, (B, K).

    ONNX has no solver. The noise bounds the condition number, so that a fixed number of steps does.
    """
    weight_BK = torch.zeros_like(missing_BK)
    residual_BK = direction_BK = missing_BK
    size_B1 = residual_BK.square().sum(1, keepdim=True)
    for _ in range(_NUM_SOLVER_STEPS):
        image_BK = torch.einsum("bkl,bl->bk", similarity_BKK, direction_BK) + NOISE * direction_BK
        step_B1 = size_B1 / (direction_BK * image_BK).sum(1, keepdim=True).clamp(min=_TINY)
        weight_BK = weight_BK + step_B1 * direction_BK
        residual_BK = residual_BK - step_B1 * image_BK
        next_size_B1 = residual_BK.square().sum(1, keepdim=True)
        direction_BK = residual_BK + next_size_B1 / size_B1.clamp(min=_TINY) * direction_BK
        size_B1 = next_size_B1
    return weight_BK
