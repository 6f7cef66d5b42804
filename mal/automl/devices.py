"""The devices of this machine, shared among the trials that run at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from mal.distributed.topology import DEFAULT_MASTER_PORT
from mal.errors import SpecError
from mal.spec.experiment import ExperimentSpec


@dataclass(frozen=True)
class Slot:
    """What one trial at a time gets.

    Attributes:
        variables: Of its process.
        overrides: Of its spec.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


NO_SLOT = Slot()


def share_devices(
    spec: ExperimentSpec, num_parallel: int, environ: Mapping[str, str]
) -> list[Slot]:
    """Return a slot for each trial that may run at a time.

    Args:
        spec: The experiment; each trial takes its `train.num_gpus` devices.
        num_parallel: Wanted; 0: as many as there are GPUs for, on CPUs one.
        environ: Of this process.

    Raises:
        SpecError: There are not so many devices.
    """
    import torch

    per_trial = spec.train.num_gpus
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
    return [Slot({"OMP_NUM_THREADS": threads, **_own_port(place)}) for place in range(num_parallel)]


def _gpu_slots(per_trial: int, num_parallel: int, names: list[str]) -> list[Slot]:
    most = len(names) // per_trial
    wanted = num_parallel or max(1, most)
    _require(wanted, most, f"{len(names)} GPUs", per_trial)
    return [
        Slot(
            {
                "CUDA_VISIBLE_DEVICES": ",".join(names[place * per_trial :][:per_trial]),
                **_own_port(place),
            },
            (f"train.gpu_ids={list(range(per_trial))}",),
        )
        for place in range(wanted)
    ]


def _require(wanted: int, most: int, have: str, per_trial: int) -> None:
    if wanted > most:
        raise SpecError(
            f"parallel trials must be at most {most} of train.num_gpus={per_trial} on {have}, "
            f"got {wanted}. Lower --parallel."
        )


def _own_port(place: int) -> dict[str, str]:
    """Let the processes of one trial meet where no other trial's do."""
    return {"MASTER_PORT": str(DEFAULT_MASTER_PORT + place)}
