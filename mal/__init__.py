"""Mask Auto-Labeler: instance masks from boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mal.labeling.image_predictor import Predictor

__version__ = "0.1.0"

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch only when somebody asks for the predictor."""
    if name == "Predictor":
        from mal.labeling.image_predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'mal' has no attribute '{name}'")
