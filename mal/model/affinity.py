"""A coarse mask without training, from the similarity of a pretrained ViT's tokens.

Tokens of one object are similar. Each token is compared with the tokens inside the box and with
those outside; the result is a coarse mask: a baseline, and an anchor for the pseudo label.

Shape letters: B items, D width, h w token grid, N = h * w tokens, M side of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mal.model.heads import box_coverage, resize_to
from mal.model.precision import without_autocast

PRIOR_ROUNDS = 2
PRIOR_MAX_LOGIT = 2.2
_MIN_TOKENS = 1e-3


class TokenAffinity:
    """The similarity of a batch's tokens; each result is computed once and kept.

    Student, teacher and pseudo label need the same results, with cached features up to four times a
    step. No gradient flows. Autocast is off: half precision cannot separate similar tokens.

    Args:
        tokens_BDhw: Deep features.
        unit_box_B4: Box, xyxy as 0..1 of the crop.
    """

    def __init__(self, tokens_BDhw: Tensor, unit_box_B4: Tensor) -> None:
        self.tokens_BDhw = tokens_BDhw.detach()
        self.unit_box_B4 = unit_box_B4
        self._weights: dict[float, Tensor] = {}
        self._priors: dict[float, Tensor] = {}

    def weights(self, temperature: float) -> Tensor:
        """Return the affinity of each pair of tokens, (B, N, N)."""
        if temperature not in self._weights:
            with without_autocast(self.tokens_BDhw.device):
                self._weights[temperature] = token_affinity(self.tokens_BDhw, temperature)
        return self._weights[temperature]

    def prior_logits(self, temperature: float) -> Tensor:
        """Return the training-free mask as log-odds in [-2.2, 2.2], (B, h, w).

        The box is the first guess of the object; the result, inside the box, is the second.
        """
        if temperature not in self._priors:
            with without_autocast(self.tokens_BDhw.device):
                self._priors[temperature] = self._compute_prior(temperature)
        return self._priors[temperature]

    def _compute_prior(self, temperature: float) -> Tensor:
        size = self.tokens_BDhw.shape[-1]
        affinity_BNN = self.weights(temperature)
        box_BN = box_coverage(self.unit_box_B4, size).flatten(1)
        object_BN = share_BN = box_BN
        for _ in range(PRIOR_ROUNDS):
            share_BN = share_of_object(affinity_BNN, object_BN)
            object_BN = share_BN * box_BN
        logits_BN = torch.logit(share_BN.clamp(0.01, 0.99))
        return logits_BN.clamp(-PRIOR_MAX_LOGIT, PRIOR_MAX_LOGIT).view(-1, size, size)

    def spread(self, map_BMM: Tensor, temperature: float) -> Tensor:
        """Replace each value of a map by its token's similarity to the map's object, (B, M, M)."""
        height, width = self.tokens_BDhw.shape[-2:]
        object_BN = F.adaptive_avg_pool2d(map_BMM[:, None], (height, width)).flatten(1)
        with without_autocast(map_BMM.device):
            share_BN = share_of_object(self.weights(temperature), object_BN)
        return resize_to(share_BN.view(-1, 1, height, width), map_BMM.shape[-2:])[:, 0]


def token_affinity(tokens_BDhw: Tensor, temperature: float) -> Tensor:
    """Return the similarity of token pairs, exp((cos - 1) / T), rows sum to 1; (B, N, N)."""
    unit_BDN = F.normalize(tokens_BDhw.float().flatten(2), dim=1)
    cosine_BNN = unit_BDN.transpose(1, 2) @ unit_BDN
    weight_BNN = ((cosine_BNN - 1) / temperature).exp()
    return weight_BNN / weight_BNN.sum(2, keepdim=True)


def share_of_object(affinity_BNN: Tensor, object_BN: Tensor) -> Tensor:
    """Return each token's similarity to the object relative to the rest, 0..1; (B, N).

    Each side is averaged over its own size: otherwise the larger side, mostly the background,
    wins every token and the object erodes.
    """
    rest_BN = 1 - object_BN
    inside_BN = torch.bmm(affinity_BNN, object_BN[:, :, None])[:, :, 0]
    outside_BN = torch.bmm(affinity_BNN, rest_BN[:, :, None])[:, :, 0]
    inside_BN = inside_BN / object_BN.sum(1, keepdim=True).clamp(min=_MIN_TOKENS)
    outside_BN = outside_BN / rest_BN.sum(1, keepdim=True).clamp(min=_MIN_TOKENS)
    return inside_BN / (inside_BN + outside_BN + 1e-6)


def prior_logits(tokens_BDhw: Tensor, unit_box_B4: Tensor, temperature: float) -> Tensor:
    """Return the training-free mask as log-odds in [-2.2, 2.2], (B, h, w)."""
    return TokenAffinity(tokens_BDhw, unit_box_B4).prior_logits(temperature)
