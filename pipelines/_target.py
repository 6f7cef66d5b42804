"""What a pipeline is compiled for: its images, and the resources of steps that compute."""

import argparse
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from mal.errors import MalError
from mal.kfp.components._images import COMMITTED, ImageReferences, image_references

REGISTRY_VARIABLE = "MAL_REGISTRY"
TAG_VARIABLE = "MAL_TAG"
DIGESTS_VARIABLE = "MAL_DIGESTS_FILE"

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"

# What both kfp and Kubernetes read.
_MEMORY = re.compile(r"[1-9][0-9]*[MGT]i?")
_CPU = re.compile(r"(?=.*[1-9])([0-9]+m|[0-9]+(\.[0-9]+)?)")
_GPU_RESOURCE = re.compile(
    r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
)


class TargetError(MalError):
    """Invalid options of a compilation."""


@dataclass(frozen=True)
class StepResources:
    """Resources of each step that computes; unset ones are left to the namespace.

    Attributes:
        gpu_resource: Resource name of the nodes' GPUs.
        memory: Limit and request, such as 16Gi; /dev/shm counts against it.
        cpu: Limit and request, such as 4 or 500m.

    Raises:
        TargetError: With the first broken rule.
    """

    gpus: int = 0
    gpu_resource: str = DEFAULT_GPU_RESOURCE
    memory: str = ""
    cpu: str = ""

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise TargetError(f"gpus must be 0 or more, got {self.gpus}. Write a whole number.")
        if not _GPU_RESOURCE.fullmatch(self.gpu_resource):
            raise TargetError(
                f"gpu-resource must read domain/name, got '{self.gpu_resource}'. "
                f"Write {DEFAULT_GPU_RESOURCE}."
            )
        if self.memory and not _MEMORY.fullmatch(self.memory):
            raise TargetError(
                f"memory must be a size with a unit, got '{self.memory}'. Write 16Gi or 500Mi."
            )
        if self.cpu and not _CPU.fullmatch(self.cpu):
            raise TargetError(f"cpu must be cores, got '{self.cpu}'. Write 4 or 500m.")


@dataclass(frozen=True)
class Target:
    """The images and the resources of a compilation."""

    images: ImageReferences = COMMITTED
    resources: StepResources = StepResources()


COMMITTED_TARGET = Target()
_TARGET: ContextVar[Target] = ContextVar("target", default=COMMITTED_TARGET)


def current_target() -> Target:
    """Return the target of the pipeline that is being traced."""
    return _TARGET.get()


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Set the target of pipelines that are traced inside the block."""
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that compiles a pipeline."""
    images = parser.add_argument_group("images", "the registry of your cluster")
    images.add_argument(
        "--registry", metavar="R", help=f"HOST[:PORT][/PATH]; default: {REGISTRY_VARIABLE}"
    )
    images.add_argument(
        "--tag", metavar="T", help=f"default: {TAG_VARIABLE}, else the version of mal"
    )
    images.add_argument(
        "--digests",
        type=Path,
        metavar="FILE",
        help=f"YAML as images/push writes it; beats the tag; default: {DIGESTS_VARIABLE}",
    )
    resources = parser.add_argument_group(
        "resources", "for each step that computes: train, tune, evaluate, inference, label_shard; "
        "export gets no GPU; unset by default",
    )  # fmt: skip
    resources.add_argument("--gpus", type=int, default=0, metavar="N")
    resources.add_argument(
        "--gpu-resource", metavar="NAME", help=f"of these; default: {DEFAULT_GPU_RESOURCE}"
    )
    resources.add_argument(
        "--memory", default="", metavar="SIZE", help="such as 16Gi; includes /dev/shm"
    )
    resources.add_argument("--cpu", default="", metavar="CORES", help="such as 4 or 500m")


def target_of(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Target:
    """Read the options; the environment sets images that they do not.

    Raises:
        MalError: One of them is invalid.
    """
    if options.gpu_resource is not None and not options.gpus:
        raise TargetError(
            f"gpu-resource must come with --gpus, got {options.gpu_resource} alone. Add --gpus 1."
        )
    return Target(
        images_of(environ, options.registry, options.tag, options.digests),
        StepResources(
            options.gpus, options.gpu_resource or DEFAULT_GPU_RESOURCE, options.memory, options.cpu
        ),
    )


def images_of(
    environ: Mapping[str, str] = os.environ,
    registry: str | None = None,
    tag: str | None = None,
    digests: Path | None = None,
) -> ImageReferences:
    """Return the image references; the environment sets what is not given.

    Raises:
        MalError: One of them is invalid.
    """
    # An explicit tag must not be overridden by digests of the environment.
    file = environ.get(DIGESTS_VARIABLE) if tag is None else None
    return image_references(
        _first(registry, environ.get(REGISTRY_VARIABLE)),
        _first(tag, environ.get(TAG_VARIABLE)),
        digests or (Path(file).expanduser() if file else None),
    )


def cluster_target_of(
    options: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> Target:
    """Read the options of a command that uses a cluster.

    Raises:
        MalError: One of them is invalid, or no registry is named. The committed registry has no
            images; a cluster whose nodes have images of that name may name it explicitly.
    """
    if _first(options.registry, environ.get(REGISTRY_VARIABLE)) is None:
        raise TargetError(
            "registry must be the one that the images were pushed to, got none. Pass --registry "
            f"HOST[:PORT][/PATH] with --digests FILE or --tag T, or set {REGISTRY_VARIABLE} and "
            f"{DIGESTS_VARIABLE} or {TAG_VARIABLE}."
        )
    return target_of(options, environ)


def _first(option: str | None, variable: str | None) -> str | None:
    """Return the option, or else the variable; an empty variable is unset."""
    return option if option is not None else variable or None
