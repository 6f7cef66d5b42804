"""Kubeflow pipelines: one folder a pipeline; see `python -m pipelines --help`."""
