"""Whether this machine can compile networks (`train.compile`)."""

from __future__ import annotations

import torch

from mal.errors import SpecError

_REASON_LENGTH = 120


def require_compiler(device: torch.device) -> None:
    """Compile one small function, so that a missing compiler is reported before any work.

    Raises:
        SpecError: There is none that works.
    """
    try:
        torch.compile(torch.square)(torch.ones(8, device=device))
    except Exception as error:  # of a foreign compiler, any kind
        reason = str(error).strip().partition("\n")[0][:_REASON_LENGTH]
        remedy = "a C++ compiler (g++)" if device.type == "cpu" else "Triton and a C compiler"
        raise SpecError(
            f"train.compile must be false where nothing can be compiled, got true ({reason}). "
            f"Install {remedy}, or set train.compile=false."
        ) from error
