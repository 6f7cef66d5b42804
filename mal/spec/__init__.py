"""The experiment spec: its keys (`experiment`), and how a file becomes one (`load`)."""

from mal.spec.experiment import ExperimentSpec
from mal.spec.load import load_spec, read_spec_source, spec_as_dict

__all__ = ["ExperimentSpec", "load_spec", "read_spec_source", "spec_as_dict"]
