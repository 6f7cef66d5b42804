"""Out of memory: recognises the error, chooses smaller settings, and writes the message."""

from __future__ import annotations

import dataclasses
import errno
import gc
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mal.distributed.workers import Worker
from mal.errors import MalError, MemoryShortageError
from mal.model.backbone import describe_backbone
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import ExperimentSpec

CROP_STEPS_PX = (384, 256)
CROP_KEY, ARCH_KEY, BATCH_KEY = "dataset.crop_size", "model.arch", "train.batch_size"

# Messages of libraries that raise a plain RuntimeError.
_SIGNS = ("allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
_AMOUNT = re.compile(r"allocate ([\d.]+ ?[A-Za-z]+)")
_MAX_CHAIN = 16  # a chain of causes may be circular
_LARGER_DEVICE = "Use a device with more memory."

Changes = Mapping[str, Any]
MemoryKeys = tuple[int, str, int]
"""Crop size (px), backbone and batch size, which the fallback changes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, PyTorch's CPU allocator or Python ran out of memory.

    A library may wrap the error in one of its own, as the ONNX exporter does.
    """
    return _shortage_in(error) is not None


def _shortage_in(error: BaseException | None) -> BaseException | None:
    """Return the first out-of-memory error in the chain of causes.

    The search stops at errors of ours, of the system, and at interruptions: they have their own
    meaning.
    """
    for _ in range(_MAX_CHAIN):
        if error is None or _is_shortage(error):
            return error
        if isinstance(error, MalError | OSError) or not isinstance(error, Exception):
            return None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # a loader process could not be started
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def smaller_training(spec: ExperimentSpec) -> dict[str, Any]:
    """Return the next changes, by dotted key, that reduce memory; {} if none is left.

    First smaller crops, then smaller backbones of the family, then smaller batches.
    """
    crop_px, arch = spec.dataset.crop_size, spec.model.arch
    for step_px in CROP_STEPS_PX:
        smaller_px = _whole_patches(step_px, arch)
        if smaller_px < crop_px:
            return {CROP_KEY: smaller_px}
    if smaller_arch := backbone_entry(arch).smaller:
        fitting_px = _whole_patches(crop_px, smaller_arch)
        changed_crop = {} if fitting_px == crop_px else {CROP_KEY: fitting_px}
        return {ARCH_KEY: smaller_arch, **changed_crop}
    if spec.train.batch_size > 1:
        return {BATCH_KEY: spec.train.batch_size // 2}
    return {}


def fallback_of(spec: ExperimentSpec) -> ExperimentSpec | None:
    """Return the spec of the automatic fallback.

    None if nothing is left, or if the given weights do not fit a smaller backbone.
    """
    changes = smaller_training(spec)
    has_weights = spec.train.pretrained_model_path or spec.train.resume_training_checkpoint_path
    if not changes or (ARCH_KEY in changes and has_weights):
        return None
    return with_changes(spec, changes)


def iterate_fallbacks(spec: ExperimentSpec) -> Iterator[ExperimentSpec]:
    """Yield every spec of the automatic fallback, largest first."""
    smaller = fallback_of(spec)
    while smaller is not None:
        yield smaller
        smaller = fallback_of(smaller)


def memory_keys(spec: ExperimentSpec) -> MemoryKeys:
    """Return the values that the fallback changes."""
    return spec.dataset.crop_size, spec.model.arch, spec.train.batch_size


def with_changes(spec: ExperimentSpec, changes: Changes) -> ExperimentSpec:
    """Return the spec with the changed values."""
    for dotted_key, value in changes.items():
        section, _, key = dotted_key.partition(".")
        changed = dataclasses.replace(getattr(spec, section), **{key: value})
        spec = dataclasses.replace(spec, **{section: changed})
    return spec


def name_changes(changes: Changes) -> str:
    """Return the changes as overrides of the command line."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def name_training_shortage(spec: ExperimentSpec, error: BaseException, device: torch.device) -> str:
    """Name the shortage, the settings that caused it, and the device."""
    settings = f"{CROP_KEY} {spec.dataset.crop_size} and {BATCH_KEY} {spec.train.batch_size}"
    return f"{name_shortage(error)} at {settings} on {_device_of(error, device)}"


def training_shortage(
    spec: ExperimentSpec, error: BaseException, device: torch.device, checkpoint: str
) -> MemoryShortageError:
    """Return the error that names what was too large and what to run next.

    Args:
        spec: The spec in use.
        error: The library's error.
        device: The device of the network.
        checkpoint: The run's latest checkpoint; '' for none.
    """
    found, changes = name_training_shortage(spec, error, device), smaller_training(spec)
    changed_settings = [name_changes(changes)]
    if ARCH_KEY in changes and spec.train.pretrained_model_path:
        changed_settings.append("its weights as train.pretrained_model_path")
    if checkpoint and changes:  # a results folder belongs to one run
        changed_settings.append("another train.results_dir")
        if ARCH_KEY not in changes:
            changed_settings.append(f"train.pretrained_model_path={checkpoint}")
    *others, last = changed_settings
    remedy = f"{', '.join(others)} and {last}" if others else last
    can_fall_back = fallback_of(spec) is not None and not (checkpoint and ARCH_KEY in changes)
    is_alone = Worker.current().num_ranks == 1
    if can_fall_back and is_alone and not spec.train.oom_fallback:
        remedy += ", or set train.oom_fallback=true"
    advice = f"Run again with {remedy}." if changes else _LARGER_DEVICE
    return MemoryShortageError(f"train failed: {found}. {advice}")


def prediction_shortage(
    action: str, spec: ExperimentSpec, error: BaseException, device: torch.device
) -> MemoryShortageError:
    """Return the error of an action whose crop size and backbone are those of its checkpoint."""
    batch_size, device = getattr(spec, action).batch_size, _device_of(error, device)
    if batch_size > 1:
        remedy = f"Run again with {action}.batch_size={batch_size // 2}."
    elif device.type == "cuda":
        remedy = "Run again with device=cpu."
    else:
        remedy = _LARGER_DEVICE
    setting = f" at {action}.batch_size {batch_size}" if batch_size > 0 else ""
    found = f"{name_shortage(error)}{setting} on {device}"
    return MemoryShortageError(f"{action} failed: {found}. {remedy}")


def name_shortage(error: BaseException) -> str:
    """Summarise the error of a library."""
    text = str(_shortage_in(error) or error)
    name = "CUDA out of memory" if "CUDA" in text else "out of memory"
    amount = _AMOUNT.search(text)
    return f"{name} (tried to allocate {amount[1]})" if amount else name


def _device_of(error: BaseException, device: torch.device) -> torch.device:
    """Return the device whose memory ran out: with a GPU it may be the host, in a loader."""
    error = _shortage_in(error) or error
    is_host = isinstance(error, MemoryError | OSError) or "allocate memory" in str(error)
    return torch.device("cpu") if is_host else device


def free_memory() -> None:
    """Release unreferenced memory; PyTorch caches CUDA memory otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _whole_patches(side_px: int, arch: str) -> int:
    step_px = describe_backbone(arch).crop_multiple_px
    return side_px // step_px * step_px
