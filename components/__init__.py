"""Kubeflow components: one folder a component, each a thin wrapper of code in `mal`."""
