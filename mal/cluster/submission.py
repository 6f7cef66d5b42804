"""Submits the job of a step once. A retried step continues its running job or uses its success.

Two labels of the job identify the step: the run, and where the job writes. By them a step finds all
its attempts, also when an earlier one has been deleted, and never uses another step's job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from mal.cluster import names
from mal.cluster.job_kind import JobKind, Phase
from mal.cluster.launch_context import Attempt, LaunchContext
from mal.cluster.pruning import require_all_fields
from mal.cluster.resources import Object
from mal.cluster.retry import PreviousAttempts, adopt_job
from mal.cluster.settings import JobSettings
from mal.errors import ClusterError

_MAX_COLLISIONS = 5
_DIGEST_CHARACTERS = 16
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def submit(context: LaunchContext, job: JobSettings, run_id: str) -> Attempt:
    """Return the step's job that runs or succeeded, or a new one.

    Raises:
        ClusterError: Another step's job has the name, or the cluster rejected the job.
    """
    client, kind = context.client, context.kind
    digest = settings_digest(job)
    run = run_id if _LABEL_VALUE.fullmatch(run_id) else _digest(run_id)
    identity = {names.RUN_LABEL: run, names.OUTPUTS_LABEL: _digest(job.outputs_uri)}
    annotations = {**job.annotations, names.SETTINGS_ANNOTATION: digest}
    job = job.model_copy(update={"labels": {**job.labels, **identity}, "annotations": annotations})
    previous = PreviousAttempts(context, job, identity)
    for _ in range(_MAX_COLLISIONS):
        own = _own_jobs(context, job, identity)
        while (usable := _usable(own, kind)) is None and not previous.have_ended():
            # These may be the pods of a job that another launcher has just created.
            own = _own_jobs(context, job, identity)
        if usable is not None:
            _require_same_settings(own[usable], kind, digest)
            attempt = _attempt(own[usable], job, usable, is_new=False)
            context.delete_on_signal(attempt)
            adopt_job(context, own[usable], job.owner)
            return attempt
        number = max(own, default=-1) + 1
        if own:
            before = _name(job.name, number - 1)
            context.log(f"{before} failed or was deleted before: this is attempt {number}")
        settings = job.model_copy(update={"name": _name(job.name, number)})
        body = kind.build_checked(settings)
        require_all_fields(client, kind, job.namespace, body)
        with context.cancellation.submitting():
            made = client.create(kind.resource, job.namespace, body)
            if made is not None:
                attempt = _attempt(made, job, number, is_new=True)
                context.delete_on_signal(attempt)
                return attempt
        taken = client.find(kind.resource, job.namespace, settings.name)
        labels = taken["metadata"].get("labels", {}) if taken else identity
        if not identity.items() <= labels.items():
            break
    raise ClusterError(
        f"Cannot create {kind.name} {job.namespace}/{settings.name}: another run or step has a "
        f"{kind.name} of this name. Delete it, or choose another job.name."
    )


def settings_digest(job: JobSettings) -> str:
    """Return a digest of what the job does; the owner and the number of restarts are no part."""
    content = job.model_dump(mode="json", exclude={"owner", "restarts"})
    return _digest(json.dumps(content, sort_keys=True))


def _require_same_settings(made: Object, kind: JobKind, digest: str) -> None:
    metadata = made["metadata"]
    other = (metadata.get("annotations") or {}).get(names.SETTINGS_ANNOTATION, digest)
    if other != digest:
        name = f"{metadata['namespace']}/{metadata['name']}"
        raise ClusterError(
            f"Cannot continue {kind.name} {name}: an earlier try of this step started it with "
            f"other settings (digest {other}, now {digest}). Delete it (kubectl -n "
            f"{metadata['namespace']} delete {kind.resource.full_name} {metadata['name']}), or "
            "start a new run."
        )


def _own_jobs(
    context: LaunchContext, job: JobSettings, identity: Mapping[str, str]
) -> dict[int, Object]:
    """Return the step's jobs by the number of their attempt."""
    resource = context.kind.resource
    listing = context.client.list_objects(resource, job.namespace, labels=identity)
    return {number: each for each in listing.items if (number := _number(each, job)) is not None}


def _usable(own: Mapping[int, Object], kind: JobKind) -> int | None:
    """Return the last attempt that runs or succeeded."""
    for number in sorted(own, reverse=True):
        is_being_deleted = "deletionTimestamp" in own[number]["metadata"]
        if not is_being_deleted and kind.read_state(own[number]).phase is not Phase.FAILED:
            return number
    return None


def _attempt(made: Object, job: JobSettings, number: int, *, is_new: bool) -> Attempt:
    metadata = made["metadata"]
    settings = job.model_copy(update={"name": metadata["name"]})
    return Attempt(settings, metadata["uid"], metadata["creationTimestamp"], number, is_new)


def _name(base: str, number: int) -> str:
    return f"{base}-r{number}" if number else base


def _number(made: Object, job: JobSettings) -> int | None:
    """Return the number of a job's attempt; None for a job of another name."""
    match = re.fullmatch(rf"{re.escape(job.name)}(?:-r(\d+))?", made["metadata"]["name"])
    return int(match[1] or 0) if match else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
