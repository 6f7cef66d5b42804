"""Fast ONNX graphs for a CPU: 8-bit matrix products, and attention as one operator.

Such a file needs ONNX Runtime: its attention operator is not part of the ONNX standard. The plain
graph computes the mask head at all three scales of object size and selects one; here each item of a
batch is computed at its own scale only.

Shape letters: B items, M side of the mask map, H heads, N tokens, D channels of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mal.model.network import SIZE_SCALES, MALNetwork, size_class_of

ORT_ATTENTION = "com.microsoft::MultiHeadAttention"
# ONNX Runtime's 8-bit convolutions are slower on a CPU than those in fp32.
QUANTIZED_OPERATORS = ["MatMul", "Gemm"]


def quantize_weights(source: Path, target: Path) -> None:
    """Write a model whose linear layers multiply in 8 bits.

    Weights have one scale per channel. Activations are quantised at run time by their own range, so
    no calibration images are needed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # onnxruntime logs advice on the root logger
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)


@contextmanager
def attention_as_one_operator() -> Iterator[None]:
    """Trace attention as ONNX Runtime's own operator, which needs less memory than products.

    An older PyTorch cannot write custom operators; attention is then written as products.
    """
    symbolic = getattr(getattr(torch.onnx, "ops", None), "symbolic", None)
    if symbolic is None:
        yield
        return

    def attend(query_BHND: Tensor, key: Tensor, value: Tensor, **_options: Any) -> Tensor:
        num_items, num_heads, num_tokens, width = query_BHND.shape
        shape = (num_items, num_tokens, num_heads * width)
        query = query_BHND.transpose(1, 2).reshape(shape)
        attended: Tensor = symbolic(
            ORT_ATTENTION,
            (query, key, value),
            {"num_heads": num_heads},
            dtype=query.dtype,
            shape=shape,
            version=1,
        )
        return attended.reshape(num_items, num_tokens, num_heads, width).transpose(1, 2)

    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend  # type: ignore[assignment]  # timm asks for this name
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def decode_by_size(
    network: MALNetwork,
    feature_maps: list[Tensor],
    image_BCSS: Tensor,
    unit_box_B4: Tensor,
    box_area_B: Tensor,
) -> Tensor:
    """Return logits as `MALNetwork.decode`, (B, M, M), in operations that can be exported."""
    if not network.is_scaled_by_size:
        return network.decode(feature_maps, image_BCSS, unit_box_B4, box_area_B)
    vector_BC = network.roi_head(feature_maps[-1], unit_box_B4)
    size_class_B = size_class_of(box_area_B)
    rows, logits = [], []
    for size_class, scale in enumerate(SIZE_SCALES):
        rows.append((size_class_B == size_class).nonzero().squeeze(1))
        features = feature_maps[-1][rows[-1]]
        logits.append(network.mask_logits_at_scale(scale, vector_BC[rows[-1]], features))
    return torch.cat(logits)[torch.cat(rows).argsort()]
