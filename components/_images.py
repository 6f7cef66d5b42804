"""The one place of every image reference.

`train` is what job pods run, `component` adds kfp and is the base of the heavy steps, `control`
has no torch and is the base of the light ones.
"""

from mal import __version__

REGISTRY = "registry.example.com/mal"

TRAIN_IMAGE = f"{REGISTRY}/train:{__version__}"
COMPONENT_IMAGE = f"{REGISTRY}/component:{__version__}"
CONTROL_IMAGE = f"{REGISTRY}/control:{__version__}"
