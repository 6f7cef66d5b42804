"""Runs a pipeline's train step as a training job: builds its settings and collects its results.

Rank 0 writes the results to an object store (or a claim). Where that is the model artifact itself,
the step reads the small files and does not copy the checkpoints.
"""

from __future__ import annotations

import hashlib
import logging
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
    FinishedJob,
    JobSettings,
    Owner,
    WaitLimits,
    get_job_kind,
    job_name,
    read_job_settings,
    run_job,
)
from mal.cluster.client import ClusterClient
from mal.cluster.rules import is_below
from mal.cluster.step_pod import StepPod
from mal.errors import ArtifactError, SpecError, StorageError
from mal.registry.snapshot import DatasetManifest
from mal.spec import ExperimentSpec, load_spec
from mal.spec.load import write_experiment_yaml
from mal.spec.uri_list import split_uris
from mal.status import MONITORED_METRIC, last_metrics
from mal.steps.metadata import Metadata, StepArtifact, flat_metrics, model_metadata
from mal.steps.specs import step_spec
from mal.storage import child_uri, fetch_results, impatient, list_files, redact_uri
from mal.storage.kfp_launcher import OWN_ROOTS_VARIABLE, secret_variable
from mal.storage.stores import (
    CONFIG_MAP,
    S3_SECRET,
    SECRET_VARIABLES,
    add_artifact_uri,
    current_launcher,
)
from mal.storage.uris import parse_remote_uri

log = logging.getLogger(__name__)

RUN_ID_VARIABLE = "KFP_RUN_ID"
POD_NAME_VARIABLE = "KFP_POD_NAME"
POD_UID_VARIABLE = "KFP_POD_UID"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# Created by manifests/base and manifests/components/s3-secret.
DEFAULT_ENVIRONMENT: Mapping[str, Any] = {
    "config_map": CONFIG_MAP,
    "secrets": {
        name: {"secret": S3_SECRET, "key": name, "optional": True} for name in SECRET_VARIABLES
    },
}

_SMALL_FILES = (EPOCH_METRICS_FILE, EXPERIMENT_FILE, MANIFEST_FILE, STATUS_FILE)
_ID_CHARACTERS = 32  # a label takes 63
_FOLDER_CHARACTERS = 12
_CHECKPOINT = re.compile(r"mal_model_epoch_\d+_step_\d+\.pth")
_TIMED = re.compile(r"\d\d:\d\d:\d\d ")
_DATA_KEYS = ("train_ann_path", "train_img_dir", "val_ann_path", "val_img_dir")


@dataclass(frozen=True)
class TrainingIdentity:
    """Identifies a training, the same in every attempt of its step.

    Attributes:
        run_id: Id of the pipeline run; outside of one, `task_id`.
        task_id: Digest of the step's model and data: other data are another training.
    """

    run_id: str
    task_id: str

    @property
    def name(self) -> str:
        """Name of the training job."""
        return job_name(self.run_id, self.task_id)

    @property
    def folder(self) -> str:
        """Name of a folder that no other training has; two jobs may have the same short name."""
        digest = hashlib.sha256(f"{self.run_id}\n{self.task_id}".encode()).hexdigest()
        return f"{self.name}-{digest[:_FOLDER_CHARACTERS]}"


def training_identity(model: StepArtifact, data: DatasetManifest) -> TrainingIdentity:
    """Return the identity of this step's training."""
    content = f"{model.uri}\n{data.dataset_sha256}"
    task_id = hashlib.sha256(content.encode()).hexdigest()[:_ID_CHARACTERS]
    return TrainingIdentity(os.environ.get(RUN_ID_VARIABLE) or task_id, task_id)


@dataclass(frozen=True)
class JobTraining:
    """The results of a finished training job.

    Attributes:
        metrics: Metrics of the training, as `run_train` gives them.
        metadata: Metadata of the model artifact.
    """

    metrics: dict[str, float]
    metadata: Metadata


def train_as_job(
    data: DatasetManifest,
    model: StepArtifact,
    *,
    backend: str,
    image: str,
    num_nodes: int,
    namespace: str,
    outputs_uri: str,
    spec: str,
    overrides: Sequence[str],
    gpus_per_node: int,
    job: Mapping[str, Any],
    limits: WaitLimits,
) -> JobTraining:
    """Train on the nodes of a cluster and wait; the model becomes the step's artifact.

    A retried step finds the job of its earlier attempt by its name, which depends on run, artifact
    and data. It continues to watch the job, or collects its results. Each training has its own
    folder below `outputs_uri`: in a shared one it would continue from another's checkpoint.

    `namespace` '' is the step's own, `outputs_uri` '' is the artifact's own URI; see `job_settings`
    for the others.

    Raises:
        SpecError: With all problems found.
        ClusterError: The job could not be created, or failed.
        ArtifactError: The job left no model.
        StorageError: The results cannot be read.
    """
    add_artifact_uri(model.uri)
    identity = training_identity(model, data)
    results = results_uri(model.uri, outputs_uri)
    if outputs_uri:
        results = child_uri(results, identity.folder)
    settings = job_settings(
        data,
        name=identity.name,
        namespace=namespace or own_namespace(),
        image=image,
        num_nodes=num_nodes,
        outputs_uri=results,
        spec=spec,
        overrides=overrides,
        gpus_per_node=gpus_per_node,
        job=job,
    )
    log.info("the job writes to %s", redact_uri(results))
    client = ClusterClient.connect()
    step_pod = own_pod()
    finished = run_job(
        settings.model_copy(update={"owner": job_owner(settings, step_pod, client)}),
        kind=get_job_kind(backend),
        run_id=identity.run_id,
        client=client,
        limits=limits,
        log=_log_line,
        step_pod=step_pod,
        find_checkpoint=lambda: last_checkpoint(results),
    )
    with tempfile.TemporaryDirectory() as scratch:
        is_artifact = results == model.uri
        folder = collect_results(results, Path(scratch if is_artifact else model.path), is_artifact)
        metrics = flat_metrics(last_metrics(folder / STATUS_FILE))
        metrics.pop(MONITORED_METRIC, None)  # the validation's, under another name
        experiment = load_spec("train", folder / EXPERIMENT_FILE)
        metadata = model_metadata(experiment, folder, metrics, uri=model.uri)
        metadata |= _job_facts(settings, finished)
    return JobTraining(metrics, metadata)


def results_uri(model_uri: str, outputs_uri: str) -> str:
    """Return the URI below which jobs write; '' is the model artifact's own.

    Raises:
        SpecError: The job's pods or this step have no access to it.
    """
    if outputs_uri:
        _require_reach(outputs_uri)
        return outputs_uri
    if parse_remote_uri(model_uri) is None:
        raise SpecError(
            f"outputs_uri must be set where artifacts are local, got '' (model: {model_uri}). "
            "Write an s3:// or minio:// folder that the job's pods may write."
        )
    return model_uri


def _require_reach(outputs_uri: str) -> None:
    try:
        is_remote = parse_remote_uri(outputs_uri) is not None
    except StorageError as error:
        raise SpecError(f"outputs_uri: {error}") from error
    if not is_remote and not (Path(outputs_uri).is_dir() and os.access(outputs_uri, os.W_OK)):
        raise SpecError(
            "outputs_uri must be s3://, minio:// or a folder that this step can write as well, got "
            f"{outputs_uri}: the step could not collect the job's results there. Use s3://, or "
            "mount the claim into the step at the same path."
        )


def job_settings(
    data: DatasetManifest,
    *,
    name: str,
    namespace: str,
    image: str,
    outputs_uri: str,
    spec: str,
    overrides: Sequence[str],
    gpus_per_node: int,
    job: Mapping[str, Any],
    num_nodes: int = 1,
) -> JobSettings:
    """Build the settings of the job that trains on a data set.

    The job gets the spec as it is resolved here, so that a recipe is the same on all nodes. A key
    that the pipeline sets is an error in `overrides`, and a setting that the step sets in `job`.
    `gpus_per_node` 0 trains on CPUs, -1 leaves it to `job`.

    Raises:
        SpecError: With all problems found.
    """
    experiment = step_spec("train", data, spec=spec, overrides=overrides, results_dir=outputs_uri)
    settings = read_job_settings(
        _with_stores({"environment": DEFAULT_ENVIRONMENT, **_with_gpus(job, gpus_per_node)}),
        name=name,
        namespace=namespace,
        image=image,
        num_nodes=num_nodes,
        spec=write_experiment_yaml(experiment),
        overrides=(),
        outputs_uri=outputs_uri,
        owner=None,
    )
    problems = list(_data_problems(experiment, settings))
    if problems:
        raise SpecError(problems)
    return settings


def collect_results(results: str, folder: Path, is_artifact: bool) -> Path:
    """Fetch the job's results into a folder and return it.

    Only the small files are fetched where `results` is the model artifact itself.

    Raises:
        ArtifactError: The results are not those of a finished training.
        StorageError: The results cannot be read.
    """
    names = fetch_results(results, folder, _SMALL_FILES if is_artifact else ("*",))
    missing = sorted({EXPERIMENT_FILE, MANIFEST_FILE, STATUS_FILE} - names)
    if missing:
        raise ArtifactError(
            f"The job left no {missing[0]} in {redact_uri(results)}. Read the job's log, and check "
            "that nothing else writes or deletes there."
        )
    return folder


def _log_line(line: str) -> None:
    """Write a line to the step's log; lines of the job's own log have a time already."""
    if _TIMED.match(line):
        sys.stderr.write(f"{line}\n")
    else:
        log.info("%s", line)


def _with_gpus(job: Mapping[str, Any], gpus_per_node: int) -> Mapping[str, Any]:
    """Add the step's number of GPUs to the user's settings."""
    resources = job.get("resources", {})
    if gpus_per_node < 0 or not isinstance(resources, Mapping):
        return job
    if "gpus_per_node" in resources:
        raise SpecError(
            "job.resources.gpus_per_node must be given once, got gpus_per_node as well. "
            "Keep one, or set gpus_per_node=-1."
        )
    return {**job, "resources": {**resources, "gpus_per_node": gpus_per_node}}


def _with_stores(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add what a pod without access to the cluster's API needs to reach KFP's own stores."""
    environment = job["environment"]
    if not isinstance(environment, Mapping):
        return job
    launcher = current_launcher()
    secrets = {
        secret_variable(keys.secret, key): {"secret": keys.secret, "key": key, "optional": True}
        for keys in launcher.secrets()
        for key in (keys.access_key, keys.secret_key)
    }
    values = {OWN_ROOTS_VARIABLE: " ".join(launcher.own_roots)} if launcher.own_roots else {}
    added: dict[str, dict[str, Any]] = {"secrets": secrets, "values": values}
    given = {name: environment.get(name, {}) for name in added}
    if not all(isinstance(value, Mapping) for value in given.values()):
        return job
    merged = {name: {**added[name], **value} for name, value in given.items()}
    return {**job, "environment": {**environment, **merged}}


def own_namespace() -> str:
    """Return the namespace of this pod."""
    if not NAMESPACE_FILE.is_file():
        raise SpecError(
            "namespace must be set outside of a cluster, got ''. Write the namespace of the job."
        )
    return NAMESPACE_FILE.read_text(encoding="utf-8").strip()


def _job_facts(job: JobSettings, finished: FinishedJob) -> Metadata:
    return {
        "job": f"{finished.kind} {finished.namespace}/{finished.name}",
        "job_uid": finished.uid,
        "job_image": job.image,
        "num_nodes": float(job.num_nodes),
        "world_size": float(job.num_nodes * job.resources.devices_per_node),
    }


def own_pod() -> StepPod | None:
    """Return the pod of this step; None outside of a cluster."""
    name, uid = os.environ.get(POD_NAME_VARIABLE), os.environ.get(POD_UID_VARIABLE)
    if not name or not uid or not NAMESPACE_FILE.is_file():
        return None
    return StepPod(NAMESPACE_FILE.read_text(encoding="utf-8").strip(), name, uid)


def job_owner(job: JobSettings, step_pod: StepPod | None, client: ClusterClient) -> Owner | None:
    """Return the object with which the job is deleted; None outside of a cluster.

    Kubernetes searches the owner in the namespace of the object. An owner in another namespace
    counts as deleted, and the job would be deleted at once.
    """
    if step_pod is None:
        return None
    if step_pod.namespace == job.namespace:
        return step_pod.find_owner(client, _log_line)
    log.info(
        "%s/%s is not owned by this step's run, whose namespace is %s: it stays when the run is "
        "deleted. A cancelled step deletes the job. If the step is killed before it can, delete "
        "the job by hand",
        job.namespace, job.name, step_pod.namespace,
    )  # fmt: skip
    return None


def last_checkpoint(results: str) -> str:
    """Return a sentence on the last checkpoint in a results folder; '' if it cannot be read.

    A store that is away is not waited for: the job is restarted or ended meanwhile.
    """
    try:
        with impatient():
            names = [name for name in list_files(results) if _CHECKPOINT.fullmatch(name)]
    except StorageError:
        return ""
    if not names:
        return f"{redact_uri(results)} has no checkpoint yet: training starts from its beginning."
    last = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    return f"The last checkpoint is {last} in {redact_uri(results)}."


def _data_problems(experiment: ExperimentSpec, settings: JobSettings) -> Iterator[str]:
    """Yield a problem for data that the job's pods cannot read."""
    mounts = [claim.mount_path for claim in settings.storage.claims]
    for key in _DATA_KEYS:
        for uri in split_uris(getattr(experiment.dataset, key)):
            if not uri or parse_remote_uri(uri) or any(is_below(uri, mount) for mount in mounts):
                continue
            yield (
                f"dataset.{key} must be s3://, minio:// or on a claim of job.storage.claims, got "
                f"{uri}: the job's pods cannot read it. Copy it there."
            )
