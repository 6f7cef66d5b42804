"""The command `mal pipelines doctor`, and the same check before a run."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mal.cluster.names import LAUNCHER_ACCOUNT
from mal.errors import EXIT_USER_ERROR, ClusterError

from .._cluster import KFP_NAMESPACE, add_connection_options, read_health
from .._registry import Pipeline
from .._target import DEFAULT_GPU_RESOURCE, Target
from .cluster_view import ClusterView, ForbiddenError
from .findings import OPTIONAL_PARTS, Finding, Need, Plan, State, unknown
from .needs_cluster import (
    gpu_need,
    katib_need,
    kueue_need,
    pipelines_need,
    pytorchjob_need,
    trainjob_need,
)
from .needs_images import image_need
from .needs_namespace import (
    account_need,
    namespace_need,
    policy_need,
    pull_secret_need,
    quota_need,
    right_need,
    secret_need,
    storage_need,
)
from .needs_store import store_need

NEEDS: Mapping[str, Need] = {
    "Kubeflow Pipelines": pipelines_need,
    "Namespace": namespace_need,
    "Accounts": account_need,
    "Rights": right_need,
    "Secrets": secret_need,
    "Object store": store_need,
    "Network policies": policy_need,
    "Pull secrets": pull_secret_need,
    "Images": image_need,
    "Quota": quota_need,
    "Storage class": storage_need,
    "Training operator v1": pytorchjob_need,
    "Trainer v2": trainjob_need,
    "Katib": katib_need,
    "Kueue": kueue_need,
    "GPUs": gpu_need,
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor", help="check what a cluster needs for a run; print ok or the command that adds it"
    )
    parser.add_argument("--namespace", required=True, metavar="N", help="namespace of the runs")
    parser.add_argument(
        "--uses",
        action="append",
        default=[],
        choices=OPTIONAL_PARTS,
        metavar="PART",
        help=f"what your runs need of {', '.join(OPTIONAL_PARTS)}, each optional by default; may "
        "be repeated",
    )
    parser.add_argument("--service-account", default=LAUNCHER_ACCOUNT, metavar="NAME")
    parser.add_argument(
        "--overlay", default="", metavar="DIR", help="your overlay, for the printed commands"
    )
    parser.add_argument("--kfp-namespace", default=KFP_NAMESPACE, metavar="N")
    parser.add_argument("--gpu-resource", default=DEFAULT_GPU_RESOURCE, metavar="NAME")
    parser.add_argument(
        "--store-endpoint",
        default="",
        metavar="URL",
        help="the object store as this machine reaches it, such as that of a port-forward",
    )
    add_connection_options(parser, is_host_required=False)
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    plan = Plan(
        namespace=options.namespace,
        kfp_namespace=options.kfp_namespace,
        overlay=options.overlay.rstrip("/"),
        account=options.service_account,
        uses=frozenset(options.uses),
        gpu_resource=options.gpu_resource,
        store_endpoint=options.store_endpoint,
        pipeline_version=read_health(options).version if options.host else "",
    )
    return report(examine(ClusterView.connect(), plan), sys.stdout)


def check_run(
    pipeline: Pipeline,
    arguments: Mapping[str, Any],
    target: Target,
    *,
    namespace: str,
    account: str,
    version: str,
) -> None:
    """Check what one run needs, and print what is missing.

    Raises:
        ClusterError: The cluster lacks something.
    """
    values = pipeline.with_defaults(arguments)
    plan = Plan(
        namespace=namespace,
        account=account,
        uses=parts_used(values, target),
        gpu_resource=target.resources.gpu_resource,
        images=images_used(pipeline, values, target),
        pipeline_version=version,
    )
    findings = [f for f in examine(ClusterView.connect(), plan) if f.state is not State.OPTIONAL]
    report(findings, sys.stderr)
    # What the user may not read is no reason to refuse the run.
    if any(finding.state is State.MISSING for finding in findings):
        raise ClusterError(
            "The cluster is not ready for this run: fix what is missing above. Without --check "
            "the run is submitted all the same."
        )


def parts_used(arguments: Mapping[str, Any], target: Target) -> frozenset[str]:
    """Return the optional parts of a cluster that a run uses."""
    job = arguments.get("job") or {}
    backend = str(arguments.get("backend", ""))
    used = {backend} & set(OPTIONAL_PARTS)
    if backend == "katib":
        used.add("pytorchjob")  # each trial is one
    if job.get("placement", {}).get("queue_name"):
        used.add("kueue")
    gpus = job.get("resources", {}).get("gpus_per_node", arguments.get("gpus_per_node", 0))
    if target.resources.gpus or (used & {"pytorchjob", "trainjob"} and gpus != 0):
        used.add("gpu")
    return frozenset(used)


def images_used(
    pipeline: Pipeline, arguments: Mapping[str, Any], target: Target
) -> tuple[str, ...]:
    """Return the images of a run's steps and jobs."""
    executors = pipeline.function.pipeline_spec.deployment_spec["executors"]
    images = {str(each["container"]["image"]) for each in executors.values()}
    named = {target.images.put_in(image) for image in images}
    if arguments.get("image") and arguments.get("backend") != "local":
        named.add(target.images.put_in(str(arguments["image"])))
    return tuple(sorted(named))


def examine(view: ClusterView, plan: Plan) -> list[Finding]:
    """Check every need; one that may not be read is unknown."""
    findings: list[Finding] = []
    for name, need in NEEDS.items():
        try:
            findings += need(view, plan)
        except ForbiddenError as error:
            findings.append(unknown(name, str(error)))
        if any(f.need == "Namespace" and f.state is State.MISSING for f in findings):
            break  # nothing else can be there
    return findings


def report(findings: Sequence[Finding], stream: TextIO) -> int:
    """Print the findings; return the exit code: 0 if every need is met."""
    stream.writelines(f"{line}\n" for finding in findings for line in finding.lines())
    unmet = sum(not finding.is_met for finding in findings)
    if unmet:
        stream.write(f"{unmet} of {len(findings)} needs are not met\n")
    else:
        stream.write("all needs are met\n")
    return EXIT_USER_ERROR if unmet else 0
