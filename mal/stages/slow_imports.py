"""Keeps packages that nobody needs from being imported by those that somebody does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def skipping_slow_imports() -> Iterator[None]:
    """Spare the start of an action what timm and torchmetrics import and never use, two seconds.

    timm takes wandb if it is there; torchmetrics asks `scipy.signal` whether it has a `hamming`.
    After the block both packages import as ever.
    """
    signal = ModuleType("scipy.signal")
    signal.hamming = None  # type: ignore[attr-defined]
    absent = {"wandb": None, "scipy.signal": signal}
    hidden = {name: stand_in for name, stand_in in absent.items() if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, stand_in in hidden.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]
