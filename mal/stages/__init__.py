"""The actions: `run_<action>(spec)` does the work of `mal <action>` and returns what it made."""

from __future__ import annotations

from mal.stages.evaluate import run_evaluate
from mal.stages.export import run_export
from mal.stages.inference import run_inference
from mal.stages.results import EvaluateResult, ExportResult, InferenceResult, TrainResult
from mal.stages.train import run_train

__all__ = [
    "EvaluateResult",
    "ExportResult",
    "InferenceResult",
    "TrainResult",
    "run_evaluate",
    "run_export",
    "run_inference",
    "run_train",
]
