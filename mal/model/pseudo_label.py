"""The pseudo label: the mean of student and teacher, sharpened by the image's colours.

Shape letters: B items, M side of the mask map, S crop side (px).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mal.model.affinity import TokenAffinity
from mal.model.color import lab_from_normalized
from mal.model.heads import resize_to
from mal.model.mean_field import mean_field
from mal.model.prompt import known_pixels, refine_by_points
from mal.spec.experiment import TrainSpec

_MIN_PROBABILITY = 0.01


@torch.no_grad()
def make_pseudo_label(
    prob_BMM: Tensor,
    box_mask_BMM: Tensor,
    image_BCSS: Tensor,
    affinity: TokenAffinity,
    *,
    train: TrainSpec,
    point_BK3: Tensor | None = None,
) -> Tensor:
    """Sharpen the mean of student and teacher into a label of 0 and 1, (B, M, M).

    Args:
        prob_BMM: Mean probability of student and teacher.
        box_mask_BMM: 0 or 1.
        image_BCSS: Normalised RGB, whose colours are used.
        affinity: Token affinity of the last feature map.
        train: The spec's CRF settings.
        point_BK3: Labelled points, which the label never contradicts.
    """
    size = (prob_BMM.shape[-1] * train.crf_size_ratio,) * 2
    if point_BK3 is not None:
        prob_BMM = _follow_points(prob_BMM, affinity, point_BK3)
    start_BMM = _start_of(prob_BMM.float(), box_mask_BMM, affinity, train)
    colours = resize_to(image_BCSS.float(), size)
    if train.crf_color_space == "lab":
        colours = lab_from_normalized(colours)
    label = mean_field(
        colours,
        resize_to(start_BMM[:, None], size)[:, 0],
        (resize_to(box_mask_BMM[:, None], size)[:, 0] >= 0.5).float(),
        kernel_size=train.crf_kernel_size,
        zeta=train.crf_zeta,
        num_iters=train.crf_num_iter,
        low=train.crf_value_low_thres,
        high=train.crf_value_high_thres,
        dilations=train.crf_dilations,
        start=train.crf_start,
        known_BHW=None if point_BK3 is None else known_pixels(point_BK3, size[0]),
    )
    label_BMM = (resize_to(label[:, None], prob_BMM.shape[-2:])[:, 0] >= 0.5).float()
    if point_BK3 is None:
        return label_BMM
    # Shrinking outvotes the one pixel of a finer map that a point holds.
    known_BMM = known_pixels(point_BK3, label_BMM.shape[-1])
    return torch.where(known_BMM == 0, label_BMM, (known_BMM > 0).float())


def _start_of(
    prob_BMM: Tensor, box_mask_BMM: Tensor, affinity: TokenAffinity, train: TrainSpec
) -> Tensor:
    """Mix the prediction with the token prior, and shift its threshold to one half."""
    start_BMM = prob_BMM
    if train.prior_weight:
        prior = affinity.prior_logits(train.affinity_temperature)
        prior_BMM = resize_to(prior[:, None], prob_BMM.shape[-2:])[:, 0].sigmoid()
        start_BMM = torch.lerp(start_BMM, prior_BMM, train.prior_weight)
    start_BMM = start_BMM * box_mask_BMM
    if train.affinity_weight:
        spread_BMM = affinity.spread(start_BMM, train.affinity_temperature)
        start_BMM = torch.lerp(start_BMM, spread_BMM, train.affinity_weight)
    if train.crf_start_thres == 0.5:
        return start_BMM
    bounded_BMM = start_BMM.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    # Filled on the device: a value sent there would make the host wait.
    threshold = torch.full((), train.crf_start_thres, device=prob_BMM.device)
    return (torch.logit(bounded_BMM) - torch.logit(threshold)).sigmoid()


def _follow_points(prob_BMM: Tensor, affinity: TokenAffinity, point_BK3: Tensor) -> Tensor:
    """Correct the probabilities of items with points; the others stay bitwise the same."""
    refined_BMM = refine_by_points(prob_BMM, affinity.tokens_BDhw, point_BK3)
    has_points_B = (point_BK3[:, :, 2] >= 0).any(1)
    return torch.where(has_points_B[:, None, None], refined_BMM, prob_BMM)
