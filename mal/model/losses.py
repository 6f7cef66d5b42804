"""The losses of MAL: multiple-instance over a box's rows and columns, and dice.

Shape letters: B items, H W map height and width.
"""

from __future__ import annotations

from torch import Tensor

DICE_EPSILON = 0.002


def dice_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Compare two maps (or lines) of probabilities by their overlap.

    Args:
        pred: (B, ...), in [0, 1].
        target: The same shape, in [0, 1].

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
