"""`mal pipelines promote`: show a model store, or make one of its versions the champion."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mal.errors import ArtifactError
from mal.registry.model_registry import registry_of_run
from mal.registry.model_store import ModelStore, StoreState
from mal.registry.promotion import list_versions, promote_version
from mal.storage import list_files, redact_uri
from mal.storage.uris import parse_remote_uri


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "promote", help="show a model store, or make one of its versions the champion"
    )
    parser.add_argument("--store", required=True, metavar="URI", help="a folder or s3://")
    parser.add_argument(
        "--to", default="", metavar="VERSION", help="a version of the store, such as an earlier one"
    )
    parser.add_argument("--reason", default="by hand", metavar="TEXT", help="for the history")
    parser.add_argument(
        "--registry", default="", metavar="URL", help="a Kubeflow Model Registry to update too"
    )
    parser.add_argument("--model-name", default="mal", metavar="NAME", help="its name there")
    parser.set_defaults(command=_promote)


def _promote(options: argparse.Namespace) -> int:
    store = ModelStore(options.store)
    if not _exists(options.store):
        raise ArtifactError(
            f"--store must be a model store, got nothing at {redact_uri(options.store)}. Check the "
            "URI; the first run of retrain creates a store."
        )
    if options.to:
        registry = registry_of_run(options.registry, options.model_name)
        promote_version(store, options.to, reason=options.reason, registry=registry)
    state = store.read()
    _show(store, state)
    return 0


def _exists(uri: str) -> bool:
    """Whether the folder exists; in a bucket, whether it has files."""
    if parse_remote_uri(uri) is None:
        return Path(uri).expanduser().is_dir()
    return bool(list_files(uri))


def _show(store: ModelStore, state: StoreState) -> None:
    lines = [f"champion: {state.champion_version or 'none'}"]
    for version in list_versions(store):
        record = store.read_version(version) or {}
        gate = "passed" if record["gate"]["is_passed"] else "refused"
        miou = record["metrics"].get("mIoU")
        metric = "no metrics" if miou is None else f"mIoU {miou:.4f}"
        lines.append(f"  {version}  {record['created_at']}  {metric}  gate {gate}")
    lines += [
        f"{change.at}  {change.previous or 'none'} -> {change.version}  {change.reason}"
        for change in state.history
    ]
    sys.stdout.write("\n".join(lines) + "\n")
