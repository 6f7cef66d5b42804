"""`mal export`."""

from __future__ import annotations

import dataclasses

from mal.artifacts import companions_of
from mal.runtime import handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.results import ExportResult
from mal.stages.session import recording
from mal.status import Status
from mal.tao import checkpoint_of


def run_export(spec: ExperimentSpec) -> ExportResult:
    """Write the ONNX model of a checkpoint, checked against PyTorch.

    Raises:
        ArtifactError: The checkpoint cannot be loaded, or the exported model differs.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    from mal.export.onnx import export_onnx

    section = dataclasses.replace(spec.export, checkpoint=checkpoint_of(spec.export.checkpoint))
    inputs = {"export.checkpoint": section.checkpoint}
    with handling_stop_signals(), recording("export", spec, inputs) as session:
        onnx_path = session.path / spec.export.onnx_file
        companions = companions_of(onnx_path.name)
        session.outputs += [onnx_path, *(onnx_path.with_name(name) for name in companions)]
        max_abs_diff = export_onnx(dataclasses.replace(spec, export=section), onnx_path)
        session.status.write(
            Status.RUNNING, "model exported", kpi={"parity_max_abs_diff": max_abs_diff}
        )
    sidecar = onnx_path.with_name(companions.sidecar)
    return ExportResult(session.path, onnx_path, sidecar, max_abs_diff)
