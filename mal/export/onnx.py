"""A checkpoint as an ONNX model: crop and box area in, probabilities out.

The graph takes no box: the prediction window is a fixed multiple of the box, so the box has the
same position in every crop, and that position is a constant of the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mal.artifacts import (
    companions_of,
    json_text,
    sha256_of_file,
    temporary_beside,
    writing_together,
)
from mal.errors import ArtifactError, MissingExtraError, SpecError
from mal.export.graph_file import write_graph
from mal.export.int8 import attention_as_one_operator, decode_by_size, quantize_weights
from mal.export.prompted import (
    PromptDecoder,
    PromptEncoder,
    largest_prompted_difference,
    write_decoder,
    write_encoder,
)
from mal.labeling.load import load_networks, resolve_checkpoint
from mal.labeling.onnx_model import run_file
from mal.model.checkpoint import read_size_prior
from mal.model.network import MALNetwork, SharedBackbones
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import ExperimentSpec

log = logging.getLogger(__name__)

MAX_ABS_DIFFERENCE = 1e-3
PARITY_BATCH_SIZE = 3
PARITY_AREAS_PX2 = (500.0, 5000.0, 50000.0)


class ExportedGraph(nn.Module):
    """The networks of a checkpoint as one graph.

    Args:
        networks: One, or student and teacher whose probabilities are averaged; a backbone that both
            share runs once.
        margin_rate: Margin of the prediction window; fixes the box's position in the crop.
        groups_by_size: Compute the mask head at an item's own scale only.
    """

    unit_box: Tensor
    decode: Callable[..., Tensor]

    def __init__(
        self, networks: list[MALNetwork], margin_rate: float, *, groups_by_size: bool = False
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.backbones = SharedBackbones.among(networks)
        self.register_buffer("unit_box", centred_unit_box(margin_rate))
        self.decode = decode_by_size if groups_by_size else MALNetwork.decode

    def forward(self, image: Tensor, box_area: Tensor) -> Tensor:
        """Return probabilities, (N, M, M)."""
        unit_box = self.unit_box.expand(image.shape[0], 4)
        networks = list(cast("Iterable[MALNetwork]", self.networks))
        encoded = self.backbones.encode_each(networks, image)
        probs = [
            self.decode(network, feature_maps, image, unit_box, box_area).sigmoid()
            for network, feature_maps in zip(networks, encoded, strict=True)
        ]
        return torch.stack(probs).mean(0)


def centred_unit_box(margin_rate: float) -> Tensor:
    """Return where the box lies in a prediction crop, (1, 4) xyxy as 0..1."""
    low = (1 - 1 / (1 + margin_rate / 2)) / 2
    return torch.tensor([[low, low, 1 - low, 1 - low]])


def export_onnx(spec: ExperimentSpec, onnx_path: Path) -> float:
    """Write model, description, encoder and decoder, all or none of them.

    Returns:
        Largest difference of probabilities from PyTorch.

    Raises:
        ArtifactError: A model in fp32 differs by more than 1e-3, or ONNX Runtime cannot open it.
            For int8 the difference is only reported: `mal evaluate` measures what it costs in IoU.
        MissingExtraError: onnx or onnxruntime is not installed.
        SpecError: The backbone cannot be exported.
    """
    _require_onnx()
    checkpoint = resolve_checkpoint(spec.export.checkpoint)
    networks, spec = load_networks(checkpoint, spec.export, spec)
    if not backbone_entry(spec.model.arch).can_export:
        raise SpecError(
            f"export.checkpoint must be of a backbone that ONNX supports, got one of "
            f"{spec.model.arch}. Use the .pth checkpoint, or train another model.arch."
        )
    graph = ExportedGraph(
        networks, spec.train.test_margin_rate[0], groups_by_size=spec.export.precision == "int8"
    ).eval()
    for network in networks:
        network.backbone.prepare_for_export()
    with torch.no_grad():
        # timm's TinyViT keeps its attention biases at the first forward pass: if that is the
        # tracing, it keeps tensors without values.
        graph(*parity_inputs(1, spec.dataset.crop_size))
    companions = companions_of(onnx_path.name)
    names = (companions.encoder, companions.decoder, companions.sidecar, onnx_path.name)
    with writing_together([onnx_path.with_name(name) for name in names]) as temporaries:
        encoder_path, decoder_path, sidecar_path, model_path = temporaries
        difference = _write_model(graph, model_path, spec)
        prompt_difference = _write_prompted(graph, encoder_path, decoder_path, spec)
        facts = {
            "map_size": networks[0].map_size,
            "sha256": sha256_of_file(model_path),
            "max_abs_diff": difference,
            "prompt_max_abs_diff": prompt_difference,
        }
        description = json_text(_describe(spec, checkpoint) | facts)
        sidecar_path.write_text(description, encoding="utf-8")
    log.info("probabilities of %s differ from PyTorch by %.1e at most", onnx_path.name, difference)
    return difference


def _describe(spec: ExperimentSpec, checkpoint: Path) -> dict[str, Any]:
    """Return the content of `mal_model.json` that does not depend on the ONNX file."""
    return {
        "arch": spec.model.arch,
        "crop_size": spec.dataset.crop_size,
        "margin_rate": spec.train.test_margin_rate[0],
        "thresholds": list(spec.train.mask_thres),
        "categories": _categories(spec),
        "opset": spec.export.opset_version,
        "precision": spec.export.precision,
        "size_prior": read_size_prior(checkpoint).to_json(),
        "checkpoint_sha256": sha256_of_file(checkpoint),
    }


def _write_model(graph: ExportedGraph, path: Path, spec: ExperimentSpec) -> float:
    """Write the whole graph; returns its largest difference from PyTorch."""
    size = spec.dataset.crop_size
    with _quantizing_if_int8(path, spec) as written:
        _write_graph(graph, size, spec, written)
    with _naming_the_opset(spec):
        difference = largest_difference(graph, path, size, spec)
    _require_agreement(difference, spec)
    return difference


def _write_prompted(
    graph: ExportedGraph, encoder_path: Path, decoder_path: Path, spec: ExperimentSpec
) -> float:
    """Write encoder and decoder; returns their largest difference from PyTorch.

    The decoder stays in fp32: it takes a small part of the time.
    """
    opset, size = spec.export.opset_version, spec.dataset.crop_size
    encoder = PromptEncoder(list(cast("Iterable[MALNetwork]", graph.networks))).eval()
    decoder = PromptDecoder(
        encoder, unit_box=graph.unit_box, crop_size=size, thresholds=spec.train.mask_thres,
        decode=graph.decode,
    ).eval()  # fmt: skip
    with _quantizing_if_int8(encoder_path, spec) as written:
        write_encoder(encoder, written, size, opset)
    write_decoder(decoder, decoder_path, opset)
    with _naming_the_opset(spec):
        difference = largest_prompted_difference(
            graph, encoder, decoder, encoder_path, decoder_path
        )
    _require_agreement(difference, spec)
    return difference


@contextmanager
def _naming_the_opset(spec: ExperimentSpec) -> Iterator[None]:
    """Name the opset in the error for a file that ONNX Runtime cannot open.

    A file that opens but cannot run is a bug of the export; that error is not changed.
    """
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(
            f"exported model must be one that ONNX Runtime opens, got {error.__cause__} with "
            f"export.opset_version={spec.export.opset_version}. Use another, such as 18, or a "
            "newer onnxruntime."
        ) from error


def _require_agreement(difference: float, spec: ExperimentSpec) -> None:
    if difference > MAX_ABS_DIFFERENCE and spec.export.precision != "int8":
        raise ArtifactError(
            f"exported model must agree with PyTorch to {MAX_ABS_DIFFERENCE:g}, got "
            f"{difference:g}. Try another export.opset_version."
        )


@contextmanager
def _quantizing_if_int8(path: Path, spec: ExperimentSpec) -> Iterator[Path]:
    """Yield where to write a graph in fp32; then write it to `path` in the spec's precision."""
    if spec.export.precision != "int8":
        yield path
        return
    with temporary_beside(path) as plain, attention_as_one_operator():
        yield plain
        quantize_weights(plain, path)


def _write_graph(graph: ExportedGraph, size: int, spec: ExperimentSpec, path: Path) -> None:
    num_items = spec.export.batch_size if spec.export.batch_size > 0 else PARITY_BATCH_SIZE
    batch = torch.export.Dim("N", min=1, max=1 << 16)
    image, area = parity_inputs(num_items, size)
    write_graph(
        graph,
        {"image": image, "box_area": area},
        "mask_prob",
        path,
        opset_version=spec.export.opset_version,
        dynamic_axes=(
            {"image": {0: batch}, "box_area": {0: batch}} if spec.export.batch_size <= 0 else None
        ),
    )


def parity_inputs(num_items: int, size: int) -> tuple[Tensor, Tensor]:
    """Return random crops, and areas of small, medium and large boxes in turn."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(num_items, 3, size, size, generator=generator)
    area = torch.tensor([PARITY_AREAS_PX2[i % 3] for i in range(num_items)])
    return image, area


def largest_difference(graph: ExportedGraph, path: Path, size: int, spec: ExperimentSpec) -> float:
    """Return the largest difference of probabilities between the file and PyTorch.

    A dynamic model is also run with another number of items than it was traced with.
    """
    fixed = spec.export.batch_size
    differences = []
    for num_items in [fixed] if fixed > 0 else [PARITY_BATCH_SIZE, 1]:
        inputs = parity_inputs(num_items, size)
        with torch.inference_mode():
            expected = graph(*inputs).numpy()
        found = run_file(path, {"image": inputs[0], "box_area": inputs[1]})
        differences.append(float(np.abs(expected - found).max()))
    return max(differences)


def _categories(spec: ExperimentSpec) -> list[Any]:
    """Return the training set's categories where it can still be read, else none."""
    from mal.data.formats import open_annotations
    from mal.errors import MalError

    path, images = spec.dataset.train_ann_path, spec.dataset.train_img_dir
    if not path:
        return []
    try:
        source = open_annotations(path, spec.dataset.type, images=images)
        boxes = source.load_boxes(with_masks=False)
    except MalError:
        return []
    return [{"id": key, "name": name} for key, name in boxes.categories.items()]


def _require_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "export") from error
