"""Reads checkpoints without executing their pickles.

A checkpoint of a Lightning program contains pickled objects of its own classes (hyper-parameters,
configs) that are not installed here. Tensors and plain values are read; everything else becomes a
placeholder that does nothing.
"""

from __future__ import annotations

import io
import logging
import mmap
import pickle
import pickletools
import re
import struct
import textwrap
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mal.errors import ArtifactError

log = logging.getLogger(__name__)

MAX_REASON_LENGTH = 120
_MEMORY_SIGN = "allocate memory"
_AMOUNT = re.compile(r"allocate (\d+) bytes")
_TAO_SUFFIXES = (".tlt", ".etlt", ".hdf5", ".h5")
_NUM_LEGACY_HEADERS = 3  # PyTorch's magic number, protocol and system precede the content


def _rebuild_parameter_with_state(data: Any, requires_grad: bool, hooks: Any, _state: Any) -> Any:
    return _ALLOWED["torch._utils", "_rebuild_parameter"](data, requires_grad, hooks)


def _rebuild_tensor_with_attributes(rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
    return rebuild(*args)


# Attributes that a program added to its tensors are dropped.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter_with_state,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_tensor_with_attributes,
    ("_codecs", "encode"): lambda text, encoding="latin1": str(text).encode(encoding),
}


class Placeholder(dict[Any, Any]):
    """Replaces a pickled object of a class that is not trusted; does nothing."""

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
        if module == "torch" and name.endswith("Storage") and "." not in name:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Placeholder


def _inert_load(file: Any, **facts: Any) -> Any:
    return _InertUnpickler(file, **facts).load()


_INERT_PICKLE = types.SimpleNamespace(
    __name__="mal_inert_pickle", Unpickler=_InertUnpickler, load=_inert_load
)


# What PyTorch's unpickler raises for what is no checkpoint, or holds more than plain values.
_NO_PLAIN_PICKLE = (
    pickle.UnpicklingError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
    struct.error,
)  # fmt: skip


def read_pickled_checkpoint(path: Path, *, leaves_tensors_on_disk: bool = False) -> Any:
    """Read a .pth or .ckpt file: tensors and plain values, nothing executed.

    Args:
        path: The file.
        leaves_tensors_on_disk: Memory-map the tensors if the format allows it.

    Raises:
        ArtifactError: It is missing, encrypted or no checkpoint of PyTorch's.
    """
    is_mapped = leaves_tensors_on_disk and zipfile.is_zipfile(path)
    try:
        return _load_quietly(path, weights_only=True, mmap=is_mapped)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"checkpoint must exist, got {path}. Give the path of a .pth file."
        ) from error
    except _NO_PLAIN_PICKLE:
        log.debug("%s holds more than tensors and plain values", path)
    except (OSError, RuntimeError, EOFError, MemoryError) as error:
        if _is_shortage(error, path):  # the file may be good
            raise
        raise _unreadable(path, error) from error
    try:
        return _load_quietly(path, weights_only=False, pickle_module=_INERT_PICKLE, mmap=is_mapped)
    except Exception as error:
        if _is_shortage(error, path):
            raise
        raise _unreadable(path, error) from error


def _load_quietly(path: Path, **how: Any) -> Any:
    """Load without PyTorch's warnings, which would precede our own message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", **how)


def _is_shortage(error: Exception, path: Path) -> bool:
    """Whether memory ran out for a file that claims no more bytes than it has."""
    if isinstance(error, MemoryError):
        return not _overstates_a_pickle(path)
    if _MEMORY_SIGN not in str(error):
        return False
    amount = _AMOUNT.search(str(error))
    return amount is None or int(amount[1]) <= path.stat().st_size


def _overstates_a_pickle(path: Path) -> bool:
    """Whether a pickle of the file is cut short, or claims more than the whole file has."""
    size = path.stat().st_size
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
                return any(_overstates(m, size) for _ in range(_NUM_LEGACY_HEADERS + 1))
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            return any(info.file_size > size for info in infos) or any(
                _overstates(io.BytesIO(archive.read(info)), size)
                for info in infos
                if info.filename.endswith("data.pkl")
            )
    except (
        OSError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
    ):  # one that ends too early, or none
        return True


def _overstates(content: Any, size: int) -> bool:
    """Whether a pickle numbers its objects beyond the size; a truncated one is a ValueError."""
    operations = pickletools.genops(content)
    return any(
        code.name == "LONG_BINPUT" and isinstance(number, int) and number > size
        for code, number, _ in operations
    )


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    if path.suffix in _TAO_SUFFIXES:
        return ArtifactError(
            f"checkpoint must be a .pth, .ckpt or .safetensors file, got {path}, which TAO "
            "encrypted or wrote for another framework. Train or convert it there with an empty "
            "encryption_key, and give its .pth."
        )
    is_overstated = isinstance(error, MemoryError | EOFError) or _MEMORY_SIGN in str(error)
    reason = "it claims more bytes than it has" if is_overstated else reason_of(error)
    return ArtifactError(
        f"checkpoint must be readable by PyTorch, got {path} ({reason}). Copy it again."
    )


def reason_of(error: Exception) -> str:
    """Return the first line of an error's text, shortened; its type if it has no text."""
    line = str(error).partition("\n")[0]
    return textwrap.shorten(line, MAX_REASON_LENGTH, placeholder=" ...") or type(error).__name__
