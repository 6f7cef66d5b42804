"""Divides the devices of this machine among parallel trials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from mal.distributed.gpus import require_gpus_asked_for
from mal.distributed.topology import DEFAULT_MASTER_PORT
from mal.errors import SpecError
from mal.spec.experiment import ExperimentSpec


@dataclass(frozen=True)
class Slot:
    """Environment variables and spec overrides that give a trial its devices."""

    variables: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


NO_SLOT = Slot()


def share_devices(
    spec: ExperimentSpec, num_parallel: int, environ: Mapping[str, str]
) -> list[Slot]:
    """Return a slot for each parallel trial.

    Args:
        spec: The experiment; each trial uses `train.num_gpus` devices.
        num_parallel: Number of parallel trials; 0 uses all GPUs, or runs one trial on CPUs.
        environ: Environment of this process.

    Raises:
        SpecError: There are not enough devices.
    """
    import torch

    per_trial = spec.train.num_gpus
    if spec.device != "cpu" and not torch.cuda.is_available():
        require_gpus_asked_for(environ)
    if spec.device == "cpu" or not torch.cuda.is_available():
        return _cpu_slots(per_trial, num_parallel, os.cpu_count() or 1)
    shown = environ.get("CUDA_VISIBLE_DEVICES", "")
    names = shown.split(",") if shown else [str(i) for i in range(torch.cuda.device_count())]
    if num_parallel == 1:
        return [NO_SLOT]
    return _gpu_slots(per_trial, num_parallel, names)


def _cpu_slots(per_trial: int, num_parallel: int, num_cores: int) -> list[Slot]:
    if num_parallel <= 1:
        return [NO_SLOT]
    _require(num_parallel, num_cores // per_trial, f"{num_cores} cores", per_trial)
    threads = str(max(1, num_cores // (num_parallel * per_trial)))
    return [Slot({"OMP_NUM_THREADS": threads, **_own_port(i)}) for i in range(num_parallel)]


def _gpu_slots(per_trial: int, num_parallel: int, names: list[str]) -> list[Slot]:
    most = len(names) // per_trial
    wanted = num_parallel or max(1, most)
    _require(wanted, most, f"{len(names)} GPUs", per_trial)
    return [
        Slot(
            {
                "CUDA_VISIBLE_DEVICES": ",".join(names[index * per_trial :][:per_trial]),
                **_own_port(index),
            },
            (f"train.gpu_ids={list(range(per_trial))}",),
        )
        for index in range(wanted)
    ]


def _require(wanted: int, most: int, have: str, per_trial: int) -> None:
    if wanted > most:
        raise SpecError(
            f"parallel trials must be at most {most} of train.num_gpus={per_trial} on {have}, "
            f"got {wanted}. Lower --parallel."
        )


def _own_port(index: int) -> dict[str, str]:
    """Give the processes of a trial a rendezvous port of their own."""
    return {"MASTER_PORT": str(DEFAULT_MASTER_PORT + index)}
