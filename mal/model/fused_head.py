"""A mask head for frozen ViTs.

It joins several feature maps of the backbone, the training-free prior, and a thin convolutional
stem: the tokens separate object from background but are coarse, and the stem, which reads the image
at twice the map's size, adds the edges.

Shape letters: B items, D backbone width, C channels of the joined tokens, G channels of the map,
h w token grid, M side of the mask map, S crop side (px).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mal.model.affinity import TokenAffinity
from mal.model.heads import initialize_convolutions, match_scaled, resize_to

# Side of the stem's input image as a multiple of the map's side.
STEM_SCALE = 2
TOKEN_CHANNELS, MAP_CHANNELS, STEM_CHANNELS = 96, 48, 24
PRIOR_TEMPERATURE = 0.1


class FusedMaskHead(nn.Module):
    """Sums the feature maps, convolves them with the prior, upsamples, and adds the stem.

    The prior is added to the logits as well: training starts from it instead of from noise.
    """

    num_bias_channels = 1

    def __init__(self, feature_channels: list[int], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.out_channels = MAP_CHANNELS
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in feature_channels)
        self.projections = nn.ModuleList(nn.Linear(w, TOKEN_CHANNELS) for w in feature_channels)
        self.join_prior = nn.Conv2d(TOKEN_CHANNELS + 1, TOKEN_CHANNELS, 3, padding=1)
        self.token_conv = nn.Conv2d(TOKEN_CHANNELS, TOKEN_CHANNELS, 3, padding=1)
        self.to_map = nn.Conv2d(TOKEN_CHANNELS, MAP_CHANNELS, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(STEM_CHANNELS, MAP_CHANNELS, 3, padding=1),
        )
        self.map_convs = nn.ModuleList(
            nn.Conv2d(MAP_CHANNELS, MAP_CHANNELS, 3, padding=1) for _ in range(2)
        )
        initialize_convolutions(self)
        self.prior_scale = nn.Parameter(torch.ones(1))

    def map_size_for(self, num_tokens_a_side: int) -> int:
        """Return the side of the mask map, px."""
        return round(self.scale * num_tokens_a_side)

    def forward(
        self,
        feature_maps: list[Tensor],
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        affinity: TokenAffinity | None,
    ) -> Tensor:
        """Return the map of vectors and, as its last channel, the prior; (B, G + 1, M, M)."""
        affinity = affinity or TokenAffinity(feature_maps[-1], unit_box_B4)
        prior_B1hw = affinity.prior_logits(PRIOR_TEMPERATURE)[:, None]
        joined = torch.cat([self._join(feature_maps), prior_B1hw], dim=1)
        tokens_BChw = F.relu(self.token_conv(F.relu(self.join_prior(joined))))
        size = self.map_size_for(tokens_BChw.shape[-1])
        maps = resize_to(self.to_map(tokens_BChw), (size, size))
        edges = self.stem(resize_to(image_BCSS, (STEM_SCALE * size, STEM_SCALE * size)))
        maps = F.relu(maps + edges)
        for conv in self.map_convs:
            maps = F.relu(conv(maps))
        return torch.cat([maps, resize_to(prior_B1hw, (size, size))], dim=1)

    def match(self, vector_BC: Tensor, maps_BCHW: Tensor) -> Tensor:
        """Return logits, (B, M, M)."""
        return match_scaled(vector_BC, maps_BCHW[:, :-1]) + self.prior_scale * maps_BCHW[:, -1]

    def _join(self, feature_maps: list[Tensor]) -> Tensor:
        joined = torch.zeros((), device=feature_maps[0].device)
        parts = zip(feature_maps, self.norms, self.projections, strict=True)
        for map_BDhw, norm, projection in parts:
            joined = joined + projection(norm(map_BDhw.permute(0, 2, 3, 1)))
        return joined.permute(0, 3, 1, 2)
