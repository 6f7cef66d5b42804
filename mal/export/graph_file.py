"""Writes a PyTorch module as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mal.errors import SpecError


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output: str,
    path: Path,
    *,
    opset_version: int,
    dynamic_axes: dict[str, dict[int, Any]] | None,
) -> None:
    """Trace a module and write it as an ONNX file.

    Args:
        module: Takes the inputs in their order.
        inputs: Examples, by the names of the module's parameters.
        output: Name of its output.
        path: The file.
        opset_version: ONNX opset, at least 18.
        dynamic_axes: By input, which axes may be of any size; None: none.

    Raises:
        SpecError: The exporter does not know the opset.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # onnxscript logs a traceback when it cannot convert to an opset, and uses another one.
    logging.getLogger("onnxscript").setLevel(logging.CRITICAL)
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns that it renames the batch axis; no program reads that name.
        warnings.filterwarnings("ignore", message=".*axis name")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic_axes,
            opset_version=opset_version,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None, "the exporter of torch.export returns what it wrote"
    if (written := program.model.opset_imports[""]) != opset_version:
        raise SpecError(
            f"export.opset_version must be one that the exporter can write, got {opset_version} "
            f"(it wrote {written}). Use {written}, or install a newer onnx."
        )
