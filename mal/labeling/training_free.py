"""Masks without training, from similar tokens of a pretrained backbone and from the colours.

This is the baseline for trained models: it is reported beside the metrics of a frozen backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mal.data.batch import box_mask_from_unit_box
from mal.labeling.predictor import normalized_on
from mal.model.affinity import prior_logits
from mal.model.backbone import Backbone
from mal.model.color import lab_from_normalized
from mal.model.heads import resize_to
from mal.model.mean_field import mean_field

MAP_CELLS_PER_TOKEN = 2
TEMPERATURE, ZETA, NUM_ITERS, DILATIONS = 0.1, 0.05, 10, (1, 2)


class TrainingFreeModel:
    """Prior and mean field as a probability model; its probabilities are 0 or 1."""

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.backbone = backbone.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(
        self,
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        _box_area_B: Tensor,
        _point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return the mask, (B, M, M); points are ignored."""
        image, unit_box = normalized_on(self.device, image_BCSS), unit_box_B4.to(self.device)
        prior = prior_logits(self.backbone(image)[-1], unit_box, TEMPERATURE)
        size = MAP_CELLS_PER_TOKEN * prior.shape[-1]
        return mean_field(
            lab_from_normalized(resize_to(image, (size, size))),
            resize_to(prior[:, None], (size, size))[:, 0].sigmoid(),
            box_mask_from_unit_box(unit_box, size),
            zeta=ZETA,
            num_iters=NUM_ITERS,
            dilations=DILATIONS,
            start="balanced",
        )
