"""The losses of MAL: multiple-instance over a box's rows and columns, dice, labelled points.

Shape letters: B items, H W map height and width, K points.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

DICE_EPSILON = 0.002
# PointSup labels ten points per object; fewer points weigh less.
POINTS_OF_FULL_WEIGHT = 10


def dice_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Compare two maps (or lines) of probabilities by their overlap.

    Args:
        pred: (B, ...), in [0, 1].
        target: Shape as `pred`, in [0, 1].

    Returns:
        1 - 2 sum(ab) / (sum(a^2) + sum(b^2) + 0.002) of each item, shape (B,).
    """
    pred_BP, target_BP = pred.flatten(1), target.flatten(1)
    overlap_B = (pred_BP * target_BP).sum(1)
    size_B = pred_BP.square().sum(1) + target_BP.square().sum(1)
    return 1 - 2 * overlap_B / (size_B + DICE_EPSILON)


def mil_loss(prob_BHW: Tensor, box_mask_BHW: Tensor) -> Tensor:
    """Penalise masks whose rows and columns do not fill exactly those of the box.

    A box fixes, for every row and column, whether the object touches it; the strongest pixel of
    that line must say the same (Lan et al. 2023, eq. 3).

    Returns:
        One loss an item, shape (B,), in [0, 2]. The caller reduces.
    """
    rows_B = dice_loss(prob_BHW.amax(2), box_mask_BHW.amax(2))
    columns_B = dice_loss(prob_BHW.amax(1), box_mask_BHW.amax(1))
    return rows_B + columns_B


def point_loss(logits_BHW: Tensor, point_BK3: Tensor) -> Tensor:
    """Compare logits at labelled points with their labels by binary cross-entropy.

    The map is sampled bilinearly (Cheng et al. 2022, PointSup). Each point counts a tenth until
    there are ten: a single point at full weight would favour masks that are too large.

    Args:
        logits_BHW: Mask logits.
        point_BK3: x and y as 0..1 of the map, and 1 on the object, 0 off it, -1 no point.

    Returns:
        The sum over the points of each item by their number or ten, whichever is more; shape (B,).
    """
    label_BK = point_BK3[:, :, 2]
    is_point_BK = (label_BK >= 0).float()
    entropy_BK = F.binary_cross_entropy_with_logits(
        sample_at_points(logits_BHW[:, None], point_BK3)[:, 0],
        label_BK.clamp(min=0),
        reduction="none",
    )
    return (entropy_BK * is_point_BK).sum(1) / is_point_BK.sum(1).clamp(min=POINTS_OF_FULL_WEIGHT)


def sample_at_points(maps_BCHW: Tensor, point_BK3: Tensor) -> Tensor:
    """Return the values of maps at points, between pixels bilinearly; (B, C, K)."""
    grid_B1K2 = point_BK3[:, None, :, :2] * 2 - 1
    sampled_BC1K = F.grid_sample(
        maps_BCHW, grid_B1K2, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled_BC1K[:, :, 0]
