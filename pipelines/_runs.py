"""A run of the cluster by its id: its state, its steps and its folder in the object store.

Kubeflow Pipelines deletes the workflow of a run an hour after its end, with its pods. Everything
here comes from its API, which keeps runs, and from the object store.
"""

import argparse
import contextlib
from collections.abc import Mapping
from typing import Any

from mal.errors import ClusterError, MalError
from mal.storage.kfp_launcher import DEFAULT_ROOT

from ._cluster import KFP_NAMESPACE, add_connection_options, connect, wrap_api_errors
from ._doctor.cluster_view import ClusterView, ForbiddenError


def add_run_options(parser: argparse.ArgumentParser, *, is_host_required: bool = True) -> None:
    """Add the options of a command about one run."""
    add_connection_options(parser, is_host_required=is_host_required)
    parser.add_argument(
        "--namespace", default="", metavar="NAME", help="of the run; default: kubeflow"
    )
    parser.add_argument(
        "--pipeline-root",
        default="",
        metavar="URI",
        help="root of the artifacts; default: the run's own, else that of kfp-launcher",
    )


def read_run(options: argparse.Namespace, run_id: str) -> Any:
    """Return a run as the API keeps it.

    Raises:
        ClusterError: There is none, or the API cannot be reached.
    """
    with wrap_api_errors(options):
        return connect(options).get_run(run_id)


def run_folder(options: argparse.Namespace, run: Any) -> str:
    """Return the URI of a run's artifacts: ROOT/PIPELINE/RUN (driver.go, metadata/client.go:391).

    Raises:
        ClusterError: The run names no pipeline.
    """
    given = run.runtime_config.pipeline_root if run.runtime_config else ""
    root = options.pipeline_root or given or _launcher_root(options.namespace or KFP_NAMESPACE)
    spec: Mapping[str, Any] = run.pipeline_spec or {}
    name = (spec.get("pipeline_spec", spec).get("pipelineInfo") or {}).get("name", "")
    if not name:
        raise ClusterError(
            f"The run {run.run_id} has no pipeline in the answer of the API, so that its folder is "
            "not known. Give the folder of its artifacts instead: s3://.../PIPELINE/RUN_ID."
        )
    return f"{root.partition('?')[0].rstrip('/')}/{name}/{run.run_id}"


def _launcher_root(namespace: str) -> str:
    """Return the root that `kfp-launcher` of the namespace names, if the user may read it."""
    with contextlib.suppress(MalError, ForbiddenError):
        return ClusterView.connect().launcher(namespace).root
    return DEFAULT_ROOT
