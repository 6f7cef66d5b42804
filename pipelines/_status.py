"""`mal pipelines status`: the state of a run, of its steps, and of pods that cannot start."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mal.errors import MalError

from ._cluster import KFP_NAMESPACE, RUN_LABEL
from ._doctor.cluster_view import ClusterView, ForbiddenError
from ._runs import add_run_options, read_run

# kubelet keeps trying, and Kubeflow Pipelines never fails such a step (pipelines#12973).
_STUCK = {
    "ImagePullBackOff": "push the image, or name it by --registry, --tag or --digests",
    "ErrImagePull": "push the image, or name it by --registry, --tag or --digests",
    "InvalidImageName": "name the image by --registry, --tag or --digests",
    "CreateContainerConfigError": "create the Secret or ConfigMap that it names",
}
_INTERNAL = ("-driver", "executor")


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("status", help="show the state of a run and of its steps")
    parser.add_argument("run_id", metavar="RUN_ID")
    add_run_options(parser)
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> int:
    run = read_run(options, options.run_id)
    sys.stdout.write(f"{run.run_id}  {run.display_name}  {run.state or 'PENDING'}\n")
    if run.error is not None and run.error.message:
        sys.stdout.write(f"  {run.error.message}\n")
    sys.stdout.writelines(f"  {line}\n" for line in step_lines(run))
    if run.finished_at is None or run.finished_at.year < 2000:  # the API's zero time is 1970
        sys.stdout.writelines(f"  {line}\n" for line in stuck_lines(options))
    return 0


def step_lines(run: Any) -> Iterator[str]:
    """Yield a line for each step: name, state, duration, error."""
    details = run.run_details.task_details if run.run_details else None
    for task in details or ():
        name = str(task.display_name or "")
        if not name or name.endswith(_INTERNAL) or name == "root":
            continue
        seconds = ""
        if task.start_time and task.end_time and task.end_time > task.start_time:
            seconds = f"{(task.end_time - task.start_time).total_seconds():.0f} s"
        error = task.error.message if task.error and task.error.message else ""
        parts = (f"{name:<28}", f"{task.state or 'PENDING':<10}", seconds, error)
        yield " ".join(part for part in parts if part).rstrip()


def stuck_lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield a line for each pod of the run that cannot start, and what to do."""
    namespace = options.namespace or KFP_NAMESPACE
    path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={RUN_LABEL}%3D{options.run_id}"
    try:
        pods = ClusterView.connect().items(path)
    except (MalError, ForbiddenError) as error:
        yield f"pods cannot be read: {error}"
        return
    for pod in pods:
        yield from _pod_lines(pod)


def _pod_lines(pod: Mapping[str, Any]) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    images = {each["name"]: each["image"] for each in pod["spec"]["containers"]}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield (
                f"{name} cannot be scheduled: {condition.get('message', '')}. Lower --memory, "
                "--cpu or --gpus, or add nodes"
            )
    for field in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(field) or ():
            waiting = container.get("state", {}).get("waiting") or {}
            reason = waiting.get("reason", "")
            if reason in _STUCK:
                image = images.get(container["name"], container.get("image", ""))
                message = waiting.get("message") or reason
                yield f"{name} cannot start {image}: {message}. To fix it, {_STUCK[reason]}"
