"""The actions: `run_<action>(spec)` does the work of `mal <action>` and returns what it made.

Each is imported when it is asked for: labelling need not wait for the trainer's packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mal.stages.results import EvaluateResult, ExportResult, InferenceResult, TrainResult

if TYPE_CHECKING:
    from mal.stages.evaluate import run_evaluate
    from mal.stages.export import run_export
    from mal.stages.inference import run_inference
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


def __getattr__(name: str) -> Any:
    """Import the module of an action."""
    if name not in __all__:
        raise AttributeError(f"module 'mal.stages' has no attribute '{name}'")
    module = importlib.import_module(f"mal.stages.{name.removeprefix('run_')}")
    return getattr(module, name)
