"""What the doctor found about a need, and what a run needs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mal.cluster.names import LAUNCHER_ACCOUNT

from .._cluster import KFP_NAMESPACE
from .cluster_view import ClusterView

_JOB_PARTS = {"pytorchjob", "trainjob", "katib"}


class State(StrEnum):
    """State of a need."""

    OK = "ok"
    MISSING = "missing"
    OPTIONAL = "optional"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One need and its state.

    Attributes:
        detail: What was found.
        fix: The command that adds what is missing; '' if nothing is to be done.
    """

    need: str
    state: State
    detail: str
    fix: str = ""

    @property
    def is_met(self) -> bool:
        """Whether a run can start as far as this need goes."""
        return self.state in (State.OK, State.OPTIONAL)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        yield f"{self.state:<9}{self.need:<33} {self.detail}"
        if self.fix:
            yield f"{'':<9}{self.fix}"


@dataclass(frozen=True)
class Plan:
    """What a run uses.

    Attributes:
        namespace: Namespace of the runs.
        kfp_namespace: Namespace of Kubeflow Pipelines.
        overlay: Folder of the overlay that is applied to the namespace.
        account: Account of the run.
        uses: The `OPTIONAL_PARTS` that the run needs; the others are reported as optional.
        gpu_resource: Name of the GPUs.
        images: Image references that nodes pull.
        store_endpoint: Address of the object store as this machine reaches it; '' finds it.
        pipeline_version: Version of Kubeflow Pipelines by its API; '' if unknown.
    """

    namespace: str
    kfp_namespace: str = KFP_NAMESPACE
    overlay: str = ""
    account: str = LAUNCHER_ACCOUNT
    uses: frozenset[str] = frozenset()
    gpu_resource: str = "nvidia.com/gpu"
    images: tuple[str, ...] = ()
    store_endpoint: str = ""
    pipeline_version: str = field(default="", compare=False)

    @property
    def makes_jobs(self) -> bool:
        """Whether the run creates training jobs."""
        return self.account == LAUNCHER_ACCOUNT or bool(self.uses & _JOB_PARTS)

    @property
    def overlay_folder(self) -> str:
        """Folder of the overlay: the given one, one of the repository, or a new one."""
        known = {
            self.kfp_namespace: "standalone",
            "kubeflow-user-example-com": "multi-user",
            "mal": "restricted",
        }
        name = known.get(self.namespace, self.namespace)
        return self.overlay or f"manifests/overlays/{name}"

    @property
    def apply(self) -> str:
        """The command that applies the overlay; it makes the overlay of a new namespace first."""
        folder = self.overlay_folder
        command = f"kubectl apply -k {folder}"
        if folder != f"manifests/overlays/{self.namespace}" or Path(folder).is_dir():
            return command
        file = "kustomization.yaml"
        return (
            f"mkdir -p {folder} && {{ test -e {folder}/{file} || "
            f"sed 's/^namespace: .*/namespace: {self.namespace}/' "
            f"manifests/overlays/multi-user/{file} > {folder}/{file}; }} && {command}"
        )

    def apply_with(self, component: str) -> str:
        """Return the command that adds a component to the overlay and applies it."""
        file = f"{self.overlay_folder}/kustomization.yaml"
        entry = f"  - ../../components/{component}"
        line = f"{{ grep -q 'components/{component}$' {file} || echo '{entry}' >> {file}; }}"
        apply = self.apply
        if apply.startswith("mkdir"):
            made, _, applied = apply.rpartition(" && ")
            return f"{made} && {line} && {applied}"
        return f"{line} && {apply}"


OPTIONAL_PARTS = ("pytorchjob", "trainjob", "katib", "kueue", "gpu")

Need = Callable[[ClusterView, Plan], Iterable[Finding]]


def absent(need: str, plan: Plan, part: str, detail: str, fix: str) -> Finding:
    """Return the finding about a part that is not there: missing if the run uses it."""
    if part in plan.uses:
        return Finding(need, State.MISSING, detail, fix)
    return Finding(need, State.OPTIONAL, detail, fix)


def ok(need: str, detail: str) -> Finding:
    """Return the finding about a need that is met."""
    return Finding(need, State.OK, detail)


def missing(need: str, detail: str, fix: str) -> Finding:
    """Return the finding about a need that is not met."""
    return Finding(need, State.MISSING, detail, fix)


def unread(need: str, detail: str, fix: str, *, is_needed: bool) -> Finding:
    """Return the finding about a need that the user may not look at."""
    return Finding(need, State.UNKNOWN if is_needed else State.OPTIONAL, detail, fix)


def unknown(need: str, detail: str, fix: str = "") -> Finding:
    """Return the finding about a need that could not be checked."""
    return Finding(need, State.UNKNOWN, detail, fix)
