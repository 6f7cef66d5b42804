"""Keeps the features of recent crops, so that a further click only runs the decoder."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from mal.labeling.onnx_model import OnnxModel
from mal.labeling.predictor import NetworkEnsemble

MAX_KEPT_BYTES = 512 << 20


class KeptFeatures:
    """A probability model that encodes each of the latest crops once.

    Args:
        model: Encodes and decodes.
        max_bytes: Limit of the kept features.
    """

    def __init__(self, model: NetworkEnsemble | OnnxModel, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.model = model
        self.max_bytes = max_bytes
        self._kept: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    def __call__(
        self,
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return probabilities, (B, M, M)."""
        encoded = self._encode(image_BCSS)
        return self.model.decode(encoded, unit_box_B4, box_area_B, point_BK3)

    def _encode(self, image_BCSS: Tensor) -> list[Tensor]:
        keys = [hashlib.blake2b(crop.numpy().tobytes()).digest() for crop in image_BCSS]
        new = [row for row, key in enumerate(keys) if key not in self._kept]
        encoded = self.model.encode(image_BCSS[new]) if new else []
        for number, row in enumerate(new):
            # Clones: a view would keep the whole batch in memory.
            self._kept[keys[row]] = [part[number : number + 1].clone() for part in encoded]
        for key in keys:
            self._kept.move_to_end(key)
        if len(new) < len(keys):
            parts = zip(*(self._kept[key] for key in keys), strict=True)
            encoded = [torch.cat(part) for part in parts]
        self._forget_oldest()
        return encoded

    def _forget_oldest(self) -> None:
        sizes = [sum(part.nbytes for part in parts) for parts in self._kept.values()]
        num_bytes = sum(sizes)
        for size in sizes:
            if num_bytes <= self.max_bytes:
                return
            self._kept.popitem(last=False)
            num_bytes -= size
