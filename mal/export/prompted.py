"""The model in two graphs, for clicking: the encoder runs once per crop, the decoder per click.

The encoder's output `features`, [N, F], is all that the decoder needs of a crop, concatenated.
Points are given in pixels of the crop, with labels 1 on the object, 0 off it, -1 for no point.

Shape letters: N items, K points, S crop side (px), M side of the mask map, F length of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mal.data.points import NO_POINT
from mal.export.graph_file import write_graph
from mal.labeling.onnx_model import run_file
from mal.model.fused_head import STEM_SCALE
from mal.model.heads import resize_to
from mal.model.network import MALNetwork, SharedBackbones
from mal.model.prompt import refine_by_points

_PARITY_POINTS = (3, 1)


class PromptEncoder(nn.Module):
    """Image to features.

    Args:
        networks: One, or student and teacher; a backbone that both share runs once.
    """

    def __init__(self, networks: Sequence[MALNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.backbones = SharedBackbones.among(networks)
        self.stem_size = STEM_SCALE * networks[0].map_size

    def forward(self, image: Tensor) -> Tensor:
        """Return features, (N, F)."""
        return torch.cat([part.flatten(1) for part in self.parts(image)], dim=1)

    def parts(self, image: Tensor) -> list[Tensor]:
        """Return the image at the mask head's stem size, and each backbone's feature maps."""
        networks = list(cast("Iterable[MALNetwork]", self.networks))
        parts = [resize_to(image, (self.stem_size, self.stem_size))]
        for feature_maps in self.backbones.encode(networks, image):
            parts += feature_maps
        return parts


class PromptDecoder(nn.Module):
    """Features and points to probabilities.

    Args:
        encoder: Computes the features.
        unit_box: Position of the box in a prediction crop, (1, 4), xyxy as 0..1.
        thresholds: Probabilities from which a pixel is mask.
        decode: `MALNetwork.decode` or an equivalent.
    """

    unit_box: Tensor

    def __init__(
        self,
        encoder: PromptEncoder,
        *,
        unit_box: Tensor,
        crop_size: int,
        thresholds: Sequence[float],
        decode: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.networks = encoder.networks
        self.backbones = encoder.backbones
        with torch.inference_mode():
            parts = encoder.parts(torch.zeros(1, 3, crop_size, crop_size))
        self.shapes = [tuple(part.shape[1:]) for part in parts]
        self.register_buffer("unit_box", unit_box)
        self.crop_size = crop_size
        self.thresholds = min(thresholds), max(thresholds)
        self.decode = decode

    def forward(
        self, features: Tensor, box_area: Tensor, points: Tensor, point_labels: Tensor
    ) -> Tensor:
        """Return probabilities, (N, M, M).

        Args:
            features: (N, F).
            box_area: w * h in original pixels, (N,).
            points: x, y in pixels of the crop, (N, K, 2).
            point_labels: (N, K).
        """
        sizes = [math.prod(shape) for shape in self.shapes]
        stem_image, *feature_maps = [
            part.reshape(-1, *shape)
            for part, shape in zip(torch.split(features, sizes, dim=1), self.shapes, strict=True)
        ]
        unit_box = self.unit_box.expand(features.shape[0], 4)
        networks = list(cast("Iterable[MALNetwork]", self.networks))
        num_maps = len(feature_maps) // len(self.backbones.owners)
        probs = []
        for network, backbone in zip(networks, self.backbones.backbone_of, strict=True):
            own = feature_maps[backbone * num_maps :][:num_maps]
            probs.append(self.decode(network, own, stem_image, unit_box, box_area).sigmoid())
        point_BK3 = torch.cat([points / self.crop_size, point_labels[:, :, None]], dim=2)
        return refine_by_points(
            torch.stack(probs).mean(0), feature_maps[num_maps - 1], point_BK3, self.thresholds
        )


def write_encoder(encoder: PromptEncoder, path: Path, crop_size: int, opset_version: int) -> None:
    """Write `mal_encoder.onnx`."""
    batch = torch.export.Dim("N", min=1, max=1 << 16)
    write_graph(
        encoder, {"image": _images(2, crop_size)}, "features", path,
        opset_version=opset_version, dynamic_axes={"image": {0: batch}},
    )  # fmt: skip


def write_decoder(decoder: PromptDecoder, path: Path, opset_version: int) -> None:
    """Write `mal_decoder.onnx`."""
    batch = torch.export.Dim("N", min=1, max=1 << 16)
    count = torch.export.Dim("K", min=1, max=1 << 16)
    size = sum(math.prod(shape) for shape in decoder.shapes)
    inputs = {"features": torch.zeros(2, size), **_prompts(2, 3, decoder.crop_size)}
    axes = {name: {0: batch} for name in inputs}
    axes["points"][1] = axes["point_labels"][1] = count
    write_graph(decoder, inputs, "mask_prob", path, opset_version=opset_version, dynamic_axes=axes)


def largest_prompted_difference(
    graph: nn.Module,
    encoder: PromptEncoder,
    decoder: PromptDecoder,
    encoder_path: Path,
    decoder_path: Path,
) -> float:
    """Return the largest difference of probabilities between the two files and PyTorch.

    The numbers of items and points differ from those of the tracing. Without points the two files
    must also agree with the whole graph, except for the extremes 0 and 1 (see
    `refine_by_points`): comparing each file with its own module would not find a wrong split.
    """
    differences = []
    for num_items, num_points in zip((3, 1), _PARITY_POINTS, strict=True):
        image = _images(num_items, decoder.crop_size)
        prompts = _prompts(num_items, num_points, decoder.crop_size)
        with torch.inference_mode():
            expected = decoder(encoder(image), *prompts.values()).numpy()
            expected_plain = graph(image, prompts["box_area"]).numpy()
        features = torch.from_numpy(run_file(encoder_path, {"image": image}))
        inputs = {"features": features, **prompts}
        found = run_file(decoder_path, inputs)
        inputs["point_labels"] = torch.full_like(prompts["point_labels"], NO_POINT)
        found_plain = run_file(decoder_path, inputs)
        differences.append(float(np.abs(expected - found).max()))
        differences.append(float(np.abs(expected_plain - found_plain).max()))
    return max(differences)


def _images(num_items: int, size: int) -> Tensor:
    return torch.randn(num_items, 3, size, size, generator=torch.Generator().manual_seed(0))


def _prompts(num_items: int, num_points: int, crop_size: int) -> dict[str, Tensor]:
    """Return areas of small, medium and large boxes in turn, and points of all labels."""
    generator = torch.Generator().manual_seed(1)
    label_N1K = torch.arange(num_items)[:, None] + torch.arange(num_points)
    return {
        "box_area": torch.tensor([(500.0, 5000.0, 50000.0)[i % 3] for i in range(num_items)]),
        "points": torch.rand(num_items, num_points, 2, generator=generator) * crop_size,
        "point_labels": (label_N1K % 3 - 1).float(),
    }
