"""Keeps packages that nobody needs from being imported by those that somebody does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def skipping_slow_imports() -> Iterator[None]:
    """Spare the start of an action what timm and torchmetrics import and never use, three seconds.

    timm takes wandb if it is there; torchmetrics asks `scipy.signal` whether it has a `hamming`,
    and takes from matplotlib the types of plots that nobody draws here. After the block all of them
    import as ever.
    """
    absent: dict[str, ModuleType | None] = {
        "wandb": None,
        "scipy.signal": _module("scipy.signal", hamming=None),
        **_empty_matplotlib(),
    }
    hidden = {name: stand_in for name, stand_in in absent.items() if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, stand_in in hidden.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def _empty_matplotlib() -> dict[str, ModuleType | None]:
    """Return what torchmetrics looks up in matplotlib; nothing where it is in use or not there.

    Whoever asks whether it is there is told by its metadata, or by a search that a stand-in fails.
    """
    if "matplotlib" in sys.modules or importlib.util.find_spec("matplotlib") is None:
        return {}
    parts = {
        "axes": _module("matplotlib.axes", Axes=object),
        "colors": _module("matplotlib.colors", Colormap=object),
        "pyplot": _module(
            "matplotlib.pyplot", Figure=object, style=_module("style", context=_no_style)
        ),
    }
    return {
        "matplotlib": _module("matplotlib", **parts),
        **{module.__name__: module for module in parts.values()},
    }


@contextmanager
def _no_style(_name: str) -> Iterator[None]:
    yield


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module
