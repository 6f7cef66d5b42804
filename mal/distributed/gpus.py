"""Checks that a node has the GPUs that its pod asked for.

PyTorch's wheels for CUDA 13 need driver 580. With an older one torch sees no GPU and says nothing:
a job on GPUs would train on the CPU for weeks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mal.artifacts import GPUS_VARIABLE
from mal.errors import SpecError

DRIVER_FILE = Path("/proc/driver/nvidia/version")
# Oldest Linux driver of each CUDA, with minor version compatibility (CUDA's release notes).
_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")


def require_gpus_asked_for(environ: Mapping[str, str] = os.environ) -> None:
    """Fail where the pod asked for GPUs; call it when PyTorch sees none.

    Raises:
        SpecError: With the driver of the node and the one that PyTorch needs.
    """
    num_gpus = environ.get(GPUS_VARIABLE, "")
    if not num_gpus.isdecimal() or not int(num_gpus):
        return
    import torch

    cuda = torch.version.cuda
    built = f"PyTorch {torch.__version__}"
    if cuda is None:
        need = f"{built} is built without CUDA"
        fix = "Use an image whose PyTorch has CUDA"
    else:
        driver = _DRIVERS.get(cuda.split(".")[0])
        need = f"{built} with CUDA {cuda}" + (f" needs driver {driver} or later" if driver else "")
        fix = "Update the driver of the node, or use an image with an older CUDA"
    raise SpecError(
        f"{num_gpus} GPUs were asked for and PyTorch sees none: {need}, and {_driver_words()}. "
        f"{fix}; to train on the CPU, ask for 0 GPUs."
    )


def _driver_words() -> str:
    try:
        found = _VERSION.search(DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "this node has no NVIDIA driver that the container can see"
    return f"the node has driver {found[1]}" if found else "the node's driver is unknown"
