"""Nothing reports to anybody that mal was used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ONNX_SESSION = """
import onnxruntime
from onnx import TensorProto, helper

x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString())
"""


def test_onnx_runtime_keeps_no_id_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    # Nothing else is set: where CI is, ONNX Runtime is silent by itself.
    variables = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", f"import mal\n{ONNX_SESSION}"], env=variables, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
