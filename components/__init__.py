"""Kubeflow components: one folder a component.

Each is a thin wrapper of the code behind the command line.
"""
