"""Kubeflow pipelines, one folder per pipeline; see `mal pipelines --help`."""
