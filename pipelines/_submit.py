"""`mal pipelines submit` and `manifests`: run on a cluster; write Kubernetes objects."""

import argparse
import contextlib
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mal import __version__
from mal.kfp.components._generated import compiled_yaml

from ._argument_checks import check_arguments
from ._arguments import parse_arguments
from ._cluster import KFP_NAMESPACE, add_options, connect, read_health, wrap_api_errors
from ._doctor.command import check_run
from ._registry import Pipeline, find_pipeline
from ._target import Target, add_target_options, cluster_target_of, target_of

# Kubeflow's own, without --service-account.
SINGLE_USER_ACCOUNT = "pipeline-runner"
MULTI_USER_ACCOUNT = "default-editor"


def add_command(commands: Any) -> None:
    """Add the subcommands."""
    parser = commands.add_parser("submit", help="run a pipeline on a cluster")
    add_pipeline_options(parser)
    parser.add_argument("--run-name", default="", metavar="NAME")
    parser.add_argument(
        "--check",
        action="store_true",
        help="check first, as doctor does, that the cluster has what this run needs",
    )
    add_options(parser)
    parser.set_defaults(command=_submit)

    manifests = commands.add_parser(
        "manifests", help="write a pipeline as Kubernetes objects: Pipeline and PipelineVersion"
    )
    manifests.add_argument("name", metavar="NAME")
    manifests.add_argument("--namespace", default=KFP_NAMESPACE, help="default: kubeflow")
    manifests.add_argument("-o", "--output", type=Path, help="a file; default: standard output")
    add_target_options(manifests)
    manifests.set_defaults(command=_manifests)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run: pipeline, parameters, images, account."""
    parser.add_argument("name", metavar="PIPELINE")
    parser.add_argument(
        "-p", dest="assignments", action="append", default=[], metavar="KEY=VALUE",
        help="a parameter of the pipeline; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--service-account",
        default="",
        metavar="NAME",
        help="account of the run, such as mal-launcher",
    )
    parser.add_argument(
        "--pipeline-root",
        default="",
        metavar="URI",
        help="root of the artifacts; default: Kubeflow's",
    )
    add_target_options(parser)


@contextlib.contextmanager
def compiled_file(compiled: str) -> Iterator[str]:
    """Yield the path of a file with the compiled pipeline, which the client needs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(compiled, encoding="utf-8")
        yield str(path)


def _submit(options: argparse.Namespace) -> int:
    pipeline = find_pipeline(options.name)
    target = cluster_target_of(options)
    arguments = parse_arguments(pipeline, options.assignments)
    check_arguments(pipeline, arguments)
    if options.check:
        health = read_health(options)
        default_account = MULTI_USER_ACCOUNT if health.is_multi_user else SINGLE_USER_ACCOUNT
        check_run(
            pipeline, arguments, target,
            namespace=options.namespace or KFP_NAMESPACE,
            account=options.service_account or default_account,
            version=health.version,
        )  # fmt: skip
    name = options.run_name or f"{pipeline.kfp_name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    links = io.StringIO()  # the client prints links itself
    with (
        compiled_file(pipeline.compiled(target)) as path,
        wrap_api_errors(options),
        contextlib.redirect_stdout(links),
    ):
        run = connect(options).create_run_from_pipeline_package(
            path,
            arguments=arguments,
            run_name=name,
            experiment_name=options.experiment,
            namespace=options.namespace or None,
            pipeline_root=options.pipeline_root or None,
            service_account=options.service_account or None,
        )
    sys.stdout.write(f"{links.getvalue()}{run.run_id}\n")
    return 0


def _manifests(options: argparse.Namespace) -> int:
    pipeline = find_pipeline(options.name)
    text = kubernetes_manifests(pipeline, target_of(options), namespace=options.namespace)
    if options.output is None:
        sys.stdout.write(text)
        return 0
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{options.output}\n")
    return 0


def kubernetes_manifests(pipeline: Pipeline, target: Target, *, namespace: str) -> str:
    """Return a Pipeline and a PipelineVersion, for clusters that store pipelines as objects.

    A stored version cannot be changed: its name has the digest of what it holds.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    release = __version__.replace(".", "-")
    function = pipeline.function_for(target)
    content = target.images.put_in(compiled_yaml(function))
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifests.yaml"
        compiler.Compiler().compile(
            function,
            str(path),
            kubernetes_manifest_format=True,
            kubernetes_manifest_options=KubernetesManifestOptions(
                pipeline_name=pipeline.kfp_name,
                pipeline_version_name=f"{pipeline.kfp_name}-{release}-{digest}",
                namespace=namespace,
                include_pipeline_manifest=True,
            ),
        )
        return target.images.put_in(path.read_text(encoding="utf-8"))
