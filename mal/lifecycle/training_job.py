"""A pipeline's train step as a job of many nodes: what the job is told, and what it leaves.

The job's first rank writes its results to an object store (or a claim), not to the step's disk.
Where that place is the model artifact itself nothing has to be copied: the step reads the small
files and leaves the checkpoints where they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.artifacts import EPOCH_METRICS_FILE, EXPERIMENT_FILE, MANIFEST_FILE, STATUS_FILE
from mal.cluster import (
    Backend,
    FinishedJob,
    JobSettings,
    Owner,
    WaitLimits,
    job_name,
    read_job_settings,
    run_job,
)
from mal.cluster.client import ClusterClient
from mal.cluster.rules import is_below
from mal.errors import ArtifactError, SpecError
from mal.lifecycle import lineage, steps
from mal.lifecycle.snapshot import DatasetManifest
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import write_experiment_yaml
from mal.status import MONITORED_METRIC, last_figures
from mal.storage import fetch_results, redact_uri
from mal.storage.uris import parse_remote_uri

RUN_ID_VARIABLE = "KFP_RUN_ID"
POD_NAME_VARIABLE = "KFP_POD_NAME"
POD_UID_VARIABLE = "KFP_POD_UID"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# What manifests/base and manifests/components/s3-secret make.
DEFAULT_ENVIRONMENT: Mapping[str, Any] = {
    "config_map": "mal-config",
    "secrets": {
        name: {"secret": "mal-s3", "key": name}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    },
}

_SMALL_FILES = (EPOCH_METRICS_FILE, EXPERIMENT_FILE, MANIFEST_FILE, STATUS_FILE)
_ID_CHARACTERS = 32  # a label takes 63
_TIMED = re.compile(r"\d\d:\d\d:\d\d ")
_DATA_KEYS = ("train_ann_path", "train_img_dir", "val_ann_path", "val_img_dir")


@dataclass(frozen=True)
class JobTraining:
    """A training that a job has finished.

    Attributes:
        figures: Of the training, as `run_train` gives them.
        facts: Metadata of the model artifact.
    """

    figures: dict[str, float]
    facts: lineage.Facts


def train_as_job(
    data: DatasetManifest,
    model: lineage.StepArtifact,
    *,
    backend: str,
    namespace: str,
    outputs_uri: str,
    limits: WaitLimits,
    **settings: Any,
) -> JobTraining:
    """Train on the nodes of a cluster and wait; the model becomes the step's artifact.

    A retried step finds the job of its earlier try by its name, which the run and the artifact
    decide, and goes on watching it or takes what it has left.

    Args:
        data: What to learn from.
        model: The step's model artifact.
        backend: pytorchjob or trainjob.
        namespace: Of the job; '' is the step's own.
        outputs_uri: Where the job writes; '' is the artifact's own uri.
        limits: How long the job may wait.
        settings: See `job_settings`.

    Raises:
        SpecError: With all problems found.
        ClusterError: The job cannot be made, or failed.
        ArtifactError: It left no model.
        StorageError: What it left cannot be read.
    """
    results = results_uri(model.uri, outputs_uri)
    task_id = hashlib.sha256(model.uri.encode()).hexdigest()[:_ID_CHARACTERS]
    run_id = os.environ.get(RUN_ID_VARIABLE) or task_id
    job = job_settings(
        data,
        name=job_name(run_id, task_id),
        namespace=namespace or _own_namespace(),
        outputs_uri=results,
        **settings,
    )
    finished = run_job(
        job,
        backend=_backend(backend),
        run_id=run_id,
        client=ClusterClient.connect(),
        limits=limits,
        tell=_tell,
    )
    with tempfile.TemporaryDirectory() as scratch:
        is_artifact = results == model.uri
        folder = collect_results(results, Path(scratch if is_artifact else model.path), is_artifact)
        figures = lineage.figures(last_figures(folder / STATUS_FILE))
        figures.pop(MONITORED_METRIC, None)  # the validation's, under another name
        experiment = load_spec("train", folder / EXPERIMENT_FILE)
        facts = lineage.model_metadata(experiment, folder, figures) | _job_facts(job, finished)
    return JobTraining(figures, facts)


def results_uri(model_uri: str, outputs_uri: str) -> str:
    """Return where the job writes its results.

    Args:
        model_uri: Of the step's model artifact.
        outputs_uri: Of the user; '' is the artifact's own.

    Raises:
        SpecError: The artifact lies on a disk that the job's pods do not see.
    """
    if outputs_uri:
        return outputs_uri
    if parse_remote_uri(model_uri) is None:
        raise SpecError(
            f"outputs_uri must be set where artifacts are local, got '' (model: {model_uri}). "
            "Write an s3:// or minio:// folder that the job's pods may write."
        )
    return model_uri


def job_settings(
    data: DatasetManifest,
    *,
    spec: str,
    overrides: Sequence[str],
    gpus_per_node: int,
    job: Mapping[str, Any],
    outputs_uri: str,
    **given: Any,
) -> JobSettings:
    """Build the settings of the job that trains on a data set.

    The job gets the spec as it is resolved here, so that a recipe is the same on all nodes.

    Args:
        data: What to learn from.
        spec: YAML text, `recipe:NAME`, or '' for the defaults.
        overrides: `dotted.key=value`; keys that the pipeline sets are refused.
        gpus_per_node: 0 trains on CPUs, -1 leaves it to `job`.
        job: Further settings of the user, nested by their names.
        outputs_uri: Where the job writes.
        given: The step's own: name, namespace, image, num_nodes.

    Raises:
        SpecError: With all problems found.
    """
    experiment = steps.train_spec(data, spec=spec, overrides=overrides, results_dir=outputs_uri)
    settings = read_job_settings(
        {"environment": DEFAULT_ENVIRONMENT, **_with_gpus(job, gpus_per_node)},
        spec=write_experiment_yaml(experiment),
        overrides=(),
        outputs_uri=outputs_uri,
        owner=_owner(),
        **given,
    )
    problems = list(_data_problems(experiment, settings))
    if problems:
        raise SpecError(problems)
    return settings


def collect_results(results: str, folder: Path, is_artifact: bool) -> Path:
    """Fetch what the job left into a folder; returns it.

    Args:
        results: Where the job wrote.
        folder: Where it goes.
        is_artifact: Whether `results` is the model artifact itself: then only the small files are
            fetched.

    Raises:
        ArtifactError: The job left no finished training.
        StorageError: The place cannot be read.
    """
    names = fetch_results(results, folder, _SMALL_FILES if is_artifact else ("*",))
    missing = sorted({EXPERIMENT_FILE, MANIFEST_FILE, STATUS_FILE} - names)
    if missing:
        raise ArtifactError(
            f"the job must leave {missing[0]} in its outputs, got none in {redact_uri(results)}. "
            "Look at the job's log, and that nothing else writes or deletes there."
        )
    return folder


def _tell(line: str) -> None:
    """Write a line to the step's log; those of the job's own log have their time already."""
    if _TIMED.match(line):
        sys.stderr.write(f"{line}\n")
    else:
        steps.tell(line)


def _with_gpus(job: Mapping[str, Any], gpus_per_node: int) -> Mapping[str, Any]:
    """Add the number of GPUs to the user's settings."""
    resources = job.get("resources", {})
    if gpus_per_node < 0 or not isinstance(resources, Mapping):
        return job
    if "gpus_per_node" in resources:
        raise SpecError(
            "job.resources.gpus_per_node must be given once, got gpus_per_node as well. "
            "Keep one, or set gpus_per_node=-1."
        )
    return {**job, "resources": {**resources, "gpus_per_node": gpus_per_node}}


def _own_namespace() -> str:
    if not NAMESPACE_FILE.is_file():
        raise SpecError(
            "namespace must be set outside of a cluster, got ''. Write the namespace of the job."
        )
    return NAMESPACE_FILE.read_text(encoding="utf-8").strip()


def _backend(name: str) -> Backend:
    if name not in set(Backend):
        raise SpecError(f"backend must be {' or '.join(Backend)}, got {name!r}. Choose one.")
    return Backend(name)


def _job_facts(job: JobSettings, finished: FinishedJob) -> lineage.Facts:
    return {
        "job": f"{finished.kind} {finished.namespace}/{finished.name}",
        "job_uid": finished.uid,
        "job_image": job.image,
        "num_nodes": float(job.num_nodes),
        "world_size": float(job.num_nodes * job.resources.devices_per_node),
    }


def _owner() -> Owner | None:
    """Return the pod of this step, with which the job is deleted; None on a person's machine."""
    name, uid = os.environ.get(POD_NAME_VARIABLE), os.environ.get(POD_UID_VARIABLE)
    return Owner(name=name, uid=uid) if name and uid else None


def _data_problems(experiment: ExperimentSpec, settings: JobSettings) -> Iterator[str]:
    """Name the data that the job's pods would not find."""
    mounts = [claim.mount_path for claim in settings.storage.claims]
    for key in _DATA_KEYS:
        uri = getattr(experiment.dataset, key)
        if not uri or parse_remote_uri(uri) or any(is_below(uri, mount) for mount in mounts):
            continue
        yield (
            f"dataset.{key} must be s3://, minio:// or on a claim of job.storage.claims, got "
            f"{uri}: the job's pods do not see it. Copy it there."
        )
