"""`mal export`."""

from __future__ import annotations

from mal.artifacts import ONNX_SIDECAR_FILE
from mal.runtime import handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.stages.results import ExportResult
from mal.stages.session import recording
from mal.status import Status


def run_export(spec: ExperimentSpec) -> ExportResult:
    """Write the ONNX model of a checkpoint, checked against PyTorch.

    Raises:
        ArtifactError: The checkpoint cannot be loaded, or the exported model differs.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    from mal.export.onnx import export_onnx

    inputs = {"export.checkpoint": spec.export.checkpoint}
    with handling_stop_signals(), recording("export", spec, inputs) as session:
        onnx_path = session.path / spec.export.onnx_file
        sidecar = onnx_path.with_name(ONNX_SIDECAR_FILE)
        max_abs_diff = export_onnx(spec, onnx_path, sidecar)
        session.status.write(
            Status.RUNNING, "model exported", kpi={"parity_max_abs_diff": max_abs_diff}
        )
    return ExportResult(session.path, onnx_path, sidecar, max_abs_diff)
