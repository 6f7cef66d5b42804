"""The train step around its job: whose it is, and where it writes, run after run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snapshots import DATA
from stand_in import StandIn

from cluster.launching import IMAGE, LIMITS
from cluster.real_training import CREDENTIALS, ROOT
from mal.errors import ClusterError, SpecError
from mal.steps import training_job
from mal.steps.training_job import JobTraining, train_as_job
from mal.storage import objects

OUTPUTS = "s3://bucket/fixed"
OTHER_DATA = dataclasses.replace(DATA, dataset_sha256="d" * 64)
# `mal train` without the training: its figure counts those that went on from one another here.
TRAINING = """\
import json, os, sys, boto3
target = next(a for a in sys.argv if a.startswith("results_dir=")).partition("=")[2]
bucket, _, folder = target.removeprefix("s3://").partition("/")
s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], region_name="us-east-1")
listed = s3.list_objects_v2(Bucket=bucket, Prefix=folder + "/").get("Contents", ())
tries = sum(".pth" in each["Key"] for each in listed) + 1
weights = "mal_model_latest.pth" if tries == 1 else f"mal_model_latest_{tries}.pth"
files = {
    weights: "weights",
    "experiment.yaml": os.environ["MAL_SPEC"],
    "manifest.json": json.dumps({"outputs": {"mal_model_latest.pth": {"sha256": "e" * 64}}}),
    "status.json": json.dumps({"status": "SUCCESS", "kpi": {"tries": tries}}),
}
for name, text in files.items():
    s3.put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=text.encode())
sys.exit(tries <= int(os.environ["FAILURES"]))
"""


@pytest.fixture
def training(
    cluster: StandIn, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    program = tmp_path / "training.py"
    program.write_text(TRAINING)
    cluster.add_image(IMAGE, f'exec {sys.executable} {program} "$@"')
    store = {"AWS_ENDPOINT_URL_S3": s3.meta.endpoint_url, "AWS_REGION": "us-east-1", **CREDENTIALS}
    cluster.kubelet.variables |= {**store, "PYTHONPATH": str(ROOT), "FAILURES": "0"}
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KFP_RUN_ID", "7f3a9c12-0000-4000-8000-000000000001")
    objects._client_of_process.cache_clear()
    yield cluster
    objects._client_of_process.cache_clear()


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return SimpleNamespace(uri=str(tmp_path / "model"), path=str(tmp_path / "model"), metadata={})


def train(model: Any, data: Any = DATA, outputs_uri: str = OUTPUTS, **job: Any) -> JobTraining:
    return train_as_job(
        data,
        model,
        backend="pytorchjob",
        namespace="team",
        outputs_uri=outputs_uri,
        limits=LIMITS,
        spec="",
        overrides=[],
        num_nodes=1,
        gpus_per_node=0,
        image=IMAGE,
        job={
            "resources": {"cpu": "1", "memory": "4Gi", "shm_size": "1Gi"},
            "environment": {},
            **job,
        },
    )


def folders(s3: Any) -> set[str]:
    found = s3.list_objects_v2(Bucket="bucket", Prefix="fixed/").get("Contents", ())
    return {each["Key"].rpartition("/")[0] for each in found}


def test_trainings_that_share_outputs_uri_never_go_on_from_one_another(
    training: StandIn, s3: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(model).metrics["tries"] == 1
    assert train(model, OTHER_DATA).metrics["tries"] == 1, "other data"
    monkeypatch.setenv("KFP_RUN_ID", "8f3a9c12-0000-4000-8000-000000000002")
    assert train(model).metrics["tries"] == 1, "another run"
    assert len(folders(s3)) == 3
    (first, *_) = training.objects("pytorchjobs")
    assert f"fixed/{first['metadata']['name']}-" in " ".join(folders(s3))


def test_a_retried_step_goes_on_in_the_folder_of_its_earlier_try(
    training: StandIn, s3: Any, model: Any
) -> None:
    training.kubelet.variables["FAILURES"] = "1"
    with pytest.raises(ClusterError, match="exit code 1"):
        train(model)
    assert train(model).metrics["tries"] == 2
    assert len(folders(s3)) == 1


@pytest.fixture
def step_pod(training: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """This process is a step in a pod, whose namespace the test writes to a file."""
    monkeypatch.setattr(training_job, "NAMESPACE_FILE", tmp_path / "namespace")
    training.api.namespaces.add("pipelines")

    def enter(namespace: str) -> None:
        (tmp_path / "namespace").write_text(f"{namespace}\n")
        pod = training.add_step_pod("step", namespace)
        monkeypatch.setenv("KFP_POD_NAME", "step")
        monkeypatch.setenv("KFP_POD_UID", pod["metadata"]["uid"])

    return enter


def test_a_job_in_another_namespace_belongs_to_no_pod_and_lives(
    training: StandIn, model: Any, step_pod: Any, caplog: pytest.LogCaptureFixture
) -> None:
    step_pod("pipelines")
    caplog.set_level("INFO")
    assert train(model).metrics["tries"] == 1
    (job,) = training.objects("pytorchjobs")
    assert "ownerReferences" not in job["metadata"]
    assert "is not owned by this step's run, whose namespace is pipelines" in caplog.text


def test_a_job_in_the_steps_own_namespace_belongs_to_its_pod(
    training: StandIn, model: Any, step_pod: Any
) -> None:
    step_pod("team")
    train(model)
    (job,) = training.objects("pytorchjobs")
    assert [each["name"] for each in job["metadata"]["ownerReferences"]] == ["step"]


def test_results_on_a_claim_that_the_step_does_not_see_are_refused_before_the_job_is_made(
    training: StandIn, model: Any
) -> None:
    claim = {"claim": "results", "mount_path": "/absent", "read_only": False}
    with pytest.raises(SpecError, match=r"outputs_uri must be s3://.* mount the claim into the st"):
        train(model, outputs_uri="/absent/run", storage={"claims": [claim]})
    assert training.objects("pytorchjobs") == []
