"""Read checkpoints without ever running what their pickle asks for.

A checkpoint of a Lightning program carries pickled objects of its own classes (hyper-parameters,
configs) that are not installed here. Tensors and plain values are read; everything else becomes an
inert placeholder.
"""

from __future__ import annotations

import logging
import pickle
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from mal.errors import ArtifactError

log = logging.getLogger(__name__)

_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("_codecs", "encode"): lambda text, encoding="latin1": str(text).encode(encoding),
}


class Placeholder(dict[Any, Any]):
    """Stands for a pickled object of a class that is not trusted; holds nothing that runs."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return Placeholder()

    def __setstate__(self, _: Any) -> None:
        return

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def add(self, _: Any) -> None:
        return

    def append(self, _: Any) -> None:
        return

    def extend(self, _: Any) -> None:
        return


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Placeholder


def _inert_load(file: Any, **facts: Any) -> Any:
    return _InertUnpickler(file, **facts).load()


_INERT_PICKLE = types.SimpleNamespace(
    __name__="mal_inert_pickle", Unpickler=_InertUnpickler, load=_inert_load
)


def read_pickled_checkpoint(path: Path) -> Any:
    """Read a .pth or .ckpt file: tensors and plain values, nothing executed.

    Raises:
        ArtifactError: It is missing or no checkpoint of PyTorch's.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=None)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"checkpoint must exist, got {path}. Give the path of a .pth file."
        ) from error
    except (pickle.UnpicklingError, AttributeError, LookupError, TypeError, ValueError):
        log.debug("%s holds more than tensors and plain values", path)
    except (OSError, RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT_PICKLE)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    reason = str(error).partition("\n")[0][:120]
    return ArtifactError(
        f"checkpoint must be readable by PyTorch, got {path} ({reason}). Copy it again."
    )
