"""Whether to train plainly or to search the settings first."""

from mal.automl.policy import (
    AutoMLSupport,
    Policy,
    Route,
    RouteDecision,
    decide_route,
    packaged_automl_support,
)

__all__ = [
    "AutoMLSupport",
    "Policy",
    "Route",
    "RouteDecision",
    "decide_route",
    "packaged_automl_support",
]
