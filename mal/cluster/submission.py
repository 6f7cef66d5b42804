"""A step's job, made once: a retried step re-attaches to it, adopts its success, or tries anew.

The run and the place of the outputs are labels of the job. By them a step finds all its attempts,
also when an earlier one has been deleted meanwhile, and never takes another step's job for its own.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mal.cluster import names
from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kinds import JobKind, Phase
from mal.cluster.pod import Object
from mal.cluster.settings import JobSettings
from mal.cluster.succession import Predecessors, take_over
from mal.errors import ClusterError

_MAX_COLLISIONS = 5
_DIGEST_CHARACTERS = 16
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Attempt:
    """The job that a step waits for.

    Attributes:
        settings: With the name of this attempt.
        uid: Of the object.
        created_at: Of the object.
        number: 0 for the step's first job.
        is_new: False for one that an earlier try of the step made.
    """

    settings: JobSettings
    uid: str
    created_at: str
    number: int
    is_new: bool

    def deletion(self, client: ClusterClient, kind: JobKind) -> Callable[[], None]:
        """Return what deletes the job at once."""
        return functools.partial(
            client.delete_at_once,
            kind.resource,
            self.settings.namespace,
            self.settings.name,
            self.uid,
        )


def submit(
    client: ClusterClient,
    kind: JobKind,
    job: JobSettings,
    *,
    run_id: str,
    cancellation: Cancellation,
    tell: Callable[[str], None],
) -> Attempt:
    """Return the step's job that runs or succeeded, or a new one.

    Raises:
        ClusterError: The name belongs to another step's job, or the cluster refused the job.
    """
    run = run_id if _LABEL_VALUE.fullmatch(run_id) else _digest(run_id)
    identity = {names.RUN_LABEL: run, names.OUTPUTS_LABEL: _digest(job.outputs_uri)}
    job = job.model_copy(update={"labels": {**job.labels, **identity}})
    predecessors = Predecessors(client, job, identity, tell)
    for _ in range(_MAX_COLLISIONS):
        own = _own_jobs(client, kind, job, identity)
        while (usable := _usable(own, kind)) is None and not predecessors.are_gone():
            own = _own_jobs(client, kind, job, identity)  # another launcher's, with those pods?
        if usable is not None:
            attempt = _attempt(own[usable], job, usable, is_new=False)
            cancellation.watch_over(attempt.deletion(client, kind))
            take_over(client, kind.resource, own[usable], job.owner, tell)
            return attempt
        number = max(own, default=-1) + 1
        if own:
            before = _name(job.name, number - 1)
            tell(f"{before} failed or was deleted before: this is attempt {number}")
        settings = job.model_copy(update={"name": _name(job.name, number)})
        with cancellation.submitting():
            made = client.create(kind.resource, job.namespace, kind.build(settings))
            if made is not None:
                attempt = _attempt(made, job, number, is_new=True)
                cancellation.watch_over(attempt.deletion(client, kind))
                return attempt
        taken = client.find(kind.resource, job.namespace, settings.name)
        labels = taken["metadata"].get("labels", {}) if taken else identity
        if not identity.items() <= labels.items():
            break
    raise ClusterError(
        f"job.name must be free in namespace {job.namespace}, got {settings.name}, which is the "
        f"{kind.name} of another run or step. Delete it, or choose another name."
    )


def _own_jobs(
    client: ClusterClient, kind: JobKind, job: JobSettings, identity: Mapping[str, str]
) -> dict[int, Object]:
    """Return the step's jobs by the number of their attempt."""
    listed = client.list_objects(kind.resource, job.namespace, labels=identity).items
    return {number: each for each in listed if (number := _number(each, job)) is not None}


def _usable(own: Mapping[int, Object], kind: JobKind) -> int | None:
    """Return the last attempt that runs or succeeded."""
    return next(
        (number for number in sorted(own, reverse=True) if _is_usable(own[number], kind)), None
    )


def _is_usable(made: Object, kind: JobKind) -> bool:
    is_leaving = "deletionTimestamp" in made["metadata"]
    return not is_leaving and kind.read_state(made).phase is not Phase.FAILED


def _attempt(made: Object, job: JobSettings, number: int, *, is_new: bool) -> Attempt:
    metadata = made["metadata"]
    settings = job.model_copy(update={"name": metadata["name"]})
    return Attempt(settings, metadata["uid"], metadata["creationTimestamp"], number, is_new)


def _name(base: str, number: int) -> str:
    return f"{base}-r{number}" if number else base


def _number(made: Object, job: JobSettings) -> int | None:
    """Return which attempt a job is; None when it is none of this name."""
    base, _, suffix = made["metadata"]["name"].partition(job.name)
    if base:
        return None
    if not suffix:
        return 0
    digits = suffix.removeprefix("-r")
    return int(digits) if suffix.startswith("-r") and digits.isdecimal() else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
