"""The code that KFP steps share; a component's body starts with `with Step(...) as step:`."""

from mal.steps.step import Step

__all__ = ["Step"]
