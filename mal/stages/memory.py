"""When memory runs out: how it is recognised, what to try next, and how to say it."""

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

# What libraries say that have no exception of their own for it.
_SIGNS = ("allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
_AMOUNT = re.compile(r"allocate ([\d.]+ ?[A-Za-z]+)")
_MAX_CHAIN = 16  # a chain may be a ring
_LARGER_DEVICE = "Use a device with more memory."

Changes = Mapping[str, Any]
MemoryKeys = tuple[int, str, int]
"""Crop size (px), backbone, batch size: what the fallback changes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, PyTorch's CPU allocator or Python found no memory left.

    A library may wrap that error in one of its own (the ONNX exporter does).
    """
    return _shortage_in(error) is not None


def _shortage_in(error: BaseException | None) -> BaseException | None:
    """Return the error that tells of memory, of one and those that it came from.

    Errors of ours and of the system, and an interruption, mean what they say themselves.
    """
    for _ in range(_MAX_CHAIN):
        if error is None or _tells_of_memory(error):
            return error
        if isinstance(error, MalError | OSError) or not isinstance(error, Exception):
            return None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _tells_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):  # a loader process could not be started
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def smaller_training(spec: ExperimentSpec) -> dict[str, Any]:
    """Return the next changes, by dotted key, that make training need less; {} if none is left.

    First smaller crops, then the smaller backbones of the family, then smaller batches.
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
    """Return the spec that a training may go on with by itself.

    None where nothing is left, or where weights were given that a smaller backbone cannot take.
    """
    changes = smaller_training(spec)
    has_weights = spec.train.pretrained_model_path or spec.train.resume_training_checkpoint_path
    if not changes or (ARCH_KEY in changes and has_weights):
        return None
    return with_changes(spec, changes)


def iterate_fallbacks(spec: ExperimentSpec) -> Iterator[ExperimentSpec]:
    """Yield every spec that a training may come down to by itself, largest first."""
    smaller = fallback_of(spec)
    while smaller is not None:
        yield smaller
        smaller = fallback_of(smaller)


def memory_keys(spec: ExperimentSpec) -> MemoryKeys:
    """Return the spec's values of what the fallback changes."""
    return spec.dataset.crop_size, spec.model.arch, spec.train.batch_size


def with_changes(spec: ExperimentSpec, changes: Changes) -> ExperimentSpec:
    """Return the spec with other values of some `section.key`s."""
    for dotted_key, value in changes.items():
        section, _, key = dotted_key.partition(".")
        changed = dataclasses.replace(getattr(spec, section), **{key: value})
        spec = dataclasses.replace(spec, **{section: changed})
    return spec


def name_changes(changes: Changes) -> str:
    """Render changes as overrides of the command line."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def name_training_shortage(spec: ExperimentSpec, error: BaseException, device: torch.device) -> str:
    """Say what ran out, where, and with which of the keys that decide it."""
    place = f"{CROP_KEY} {spec.dataset.crop_size} and {BATCH_KEY} {spec.train.batch_size}"
    return f"{name_shortage(error)} at {place} on {_device_of(error, device)}"


def training_shortage(
    spec: ExperimentSpec, error: BaseException, device: torch.device, checkpoint: str
) -> MemoryShortageError:
    """Return the error that says what was too large and what to run next.

    Args:
        spec: In use.
        error: What the library raised.
        device: Where the network was.
        checkpoint: What the run has so far, '' for nothing; it is of the network in use.
    """
    found, changes = name_training_shortage(spec, error, device), smaller_training(spec)
    wishes = [name_changes(changes)]
    if ARCH_KEY in changes and spec.train.pretrained_model_path:
        wishes.append("its weights as train.pretrained_model_path")
    if checkpoint and changes:  # a results folder belongs to one run
        wishes.append("another train.results_dir")
        if ARCH_KEY not in changes:
            wishes.append(f"train.pretrained_model_path={checkpoint}")
    remedy = (
        " and ".join(wishes) if len(wishes) < 3 else f"{wishes[0]}, {wishes[1]} and {wishes[2]}"
    )
    can_fall_back = fallback_of(spec) is not None and not (checkpoint and ARCH_KEY in changes)
    is_alone = Worker.current().num_ranks == 1
    if can_fall_back and is_alone and not spec.train.oom_fallback:
        remedy += ", or set train.oom_fallback=true"
    advice = f"Run again with {remedy}." if changes else _LARGER_DEVICE
    return MemoryShortageError(f"train must fit into memory, got {found}. {advice}")


def prediction_shortage(
    action: str, spec: ExperimentSpec, error: BaseException, device: torch.device
) -> MemoryShortageError:
    """Return the error of an action whose crop and backbone belong to its checkpoint."""
    batch_size, device = getattr(spec, action).batch_size, _device_of(error, device)
    if batch_size > 1:
        remedy = f"Run again with {action}.batch_size={batch_size // 2}."
    elif device.type == "cuda":
        remedy = "Run again with device=cpu."
    else:
        remedy = _LARGER_DEVICE
    place = f" at {action}.batch_size {batch_size}" if batch_size > 0 else ""
    found = f"{name_shortage(error)}{place} on {device}"
    return MemoryShortageError(f"{action} must fit into memory, got {found}. {remedy}")


def name_shortage(error: BaseException) -> str:
    """Return a few words of what a library says in many."""
    text = str(_shortage_in(error) or error)
    name = "CUDA out of memory" if "CUDA" in text else "out of memory"
    amount = _AMOUNT.search(text)
    return f"{name} (tried to allocate {amount[1]})" if amount else name


def _device_of(error: BaseException, device: torch.device) -> torch.device:
    """Return whose memory ran out: beside a GPU the loaders may lack that of the host."""
    error = _shortage_in(error) or error
    is_host = isinstance(error, MemoryError | OSError) or "allocate memory" in str(error)
    return torch.device("cpu") if is_host else device


def free_memory() -> None:
    """Give back what nothing refers to any more; PyTorch keeps CUDA memory for itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _whole_patches(side_px: int, arch: str) -> int:
    step_px = describe_backbone(arch).crop_multiple_px
    return side_px // step_px * step_px
