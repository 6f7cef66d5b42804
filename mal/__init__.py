"""Mask Auto-Labeler: instance masks from boxes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mal.labeling.image_predictor import Predictor

# Torch's threads spin while they wait for each other. On cores that are shared with anything else
# that costs twentyfold (measured: 0.2 against 4.4 steps a second); sleeping costs nothing there.
# OpenMP reads it when torch is loaded, so it must stand before the first import of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# ONNX Runtime's packages for Linux (1.32 here) report its use to Microsoft and keep an id of the
# machine in the home folder. It reads this once, when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch only for the predictor."""
    if name == "Predictor":
        from mal.labeling.image_predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'mal' has no attribute '{name}'")
