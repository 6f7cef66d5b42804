"""The network in prediction: fp32 PyTorch as the paper writes it, against 8 bits in ONNX Runtime.

A randomly initialised ViT-B with TAO's head on one small, one medium and one large object. Literal:
attention as softmax(q k / sqrt(d)) v, maps channels first. What 8 bits cost in IoU is measured with
trained weights, in docs/results.md. bf16 has a line of its own: without bf16 units it is slower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Result, compare, has_bf16_units, seconds_of, share_of_peak
from torch import Tensor

from mal.export.onnx import export_onnx, parity_inputs
from mal.labeling.onnx_model import OnnxModel
from mal.labeling.predictor import NetworkEnsemble
from mal.model.network import MALNetwork
from mal.spec import load_spec

REQUIRED_INT8, REQUIRED_BF16 = 1.9, 1.6
NUM_ITEMS = 3
REPEATS = {224: 7, 512: 3}
CPU = torch.device("cpu")


def run() -> Iterator[Result]:
    for size, repeats in REPEATS.items():
        yield int8_result(size, repeats)
        if has_bf16_units() or size == min(REPEATS):
            yield bf16_result(size, repeats)


def int8_result(size: int, repeats: int) -> Result:
    network = draw_network(size)
    inputs = parity_inputs(NUM_ITEMS, size)
    unit_box = torch.tensor([[0.115, 0.115, 0.885, 0.885]]).expand(NUM_ITEMS, 4)
    models = {name: export(network, size, name) for name in ("fp32", "int8")}
    ours = partial(models["int8"], inputs[0], unit_box, inputs[1])
    eager = NetworkEnsemble([draw_network(size)], use_flip=False, device=CPU)
    literal = partial(predict_literally, as_written(network), inputs[0], unit_box, inputs[1])
    others = {
        "ort_fp32": partial(models["fp32"], inputs[0], unit_box, inputs[1]),
        "our_eager_fp32": partial(eager, inputs[0], unit_box, inputs[1]),
    }
    facts: dict[str, Any] = {
        f"{name}_s": round(min(seconds_of(other, time.process_time) for _ in range(2)), 3)
        for name, other in others.items()
    }
    facts["largest_difference"] = round(float((literal() - ours()).abs().max()), 4)
    return compare(
        f"int8, ViT-B, crop {size}, batch {NUM_ITEMS}",
        literal, ours, required=REQUIRED_INT8, repeats=repeats, warm_up=False, **facts,
    )  # fmt: skip


def bf16_result(size: int, repeats: int) -> Result:
    network = draw_network(size)
    image, area = parity_inputs(NUM_ITEMS, size)
    unit_box = torch.tensor([[0.115, 0.115, 0.885, 0.885]]).expand(NUM_ITEMS, 4)
    half = NetworkEnsemble(
        [draw_network(size)], use_flip=False, device=CPU, autocast_type=torch.bfloat16
    )
    result = compare(
        f"bf16, ViT-B, crop {size}, batch {NUM_ITEMS}",
        partial(predict_literally, as_written(network), image, unit_box, area),
        partial(half, image, unit_box, area),
        required=REQUIRED_BF16 if has_bf16_units() else None,
        repeats=repeats,
        cpu_has_bf16_units=has_bf16_units(),
    )
    ours = partial(half, image, unit_box, area)
    result.facts.update(share_of_peak(ours, result.ours, torch.bfloat16))
    return result


def draw_network(size: int) -> MALNetwork:
    torch.manual_seed(0)
    spec = load_spec("train", {}, [f"dataset.crop_size={size}"])
    return MALNetwork(spec.model, size).eval()


def as_written(network: MALNetwork) -> MALNetwork:
    """Make attention multiply, exponentiate and multiply, holding all its weights."""
    backbone: Any = network.backbone
    for block in backbone.blocks:
        block.attn.fused_attn = False
    return network


@torch.inference_mode()
def predict_literally(network: MALNetwork, image: Tensor, unit_box: Tensor, area: Tensor) -> Tensor:
    prob: Tensor = network(image.contiguous(), unit_box, area).sigmoid()
    return prob


def export(network: MALNetwork, size: int, precision: str) -> OnnxModel:
    """Export as `mal export` does, on one thread (OMP_NUM_THREADS does not bind ONNX Runtime)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = {f"student.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": state}, folder / "b.pth")
        overrides = [
            f"export.checkpoint={folder / 'b.pth'}",
            f"export.precision={precision}",
            f"dataset.crop_size={size}",
        ]
        onnx_path = folder / "model.onnx"
        export_onnx(load_spec("export", {}, overrides), onnx_path)
        return OnnxModel(onnx_path, num_threads=1)
