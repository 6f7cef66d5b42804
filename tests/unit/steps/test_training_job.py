"""The train step as a job: what it is told and what is taken from it; no cluster is asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snapshots import DATA, SPLIT

from mal.cluster import JobSettings, StepPod, build_pytorchjob
from mal.errors import ArtifactError, SpecError
from mal.registry.snapshot import DatasetManifest
from mal.spec import load_spec
from mal.steps import training_job
from mal.steps.training_job import (
    collect_results,
    job_settings,
    results_uri,
    training_identity,
)


def settings_of(data: DatasetManifest = DATA, **changes: Any) -> JobSettings:
    given: dict[str, Any] = {
        "spec": "recipe:scratch",
        "overrides": ["train.lr=3e-4"],
        "gpus_per_node": 2,
        "job": {},
        "outputs_uri": "minio://bucket/run/model",
        "name": "mal-0123abcd-4567",
        "namespace": "team",
        "image": "registry.example.com/mal/train:1",
        "num_nodes": 3,
    }
    return job_settings(data, **given | changes)


def variables_of(job: JobSettings) -> dict[str, Any]:
    container = build_pytorchjob(job)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"][
        "containers"
    ][0]
    return {variable["name"]: variable for variable in container["env"]}


def test_a_job_writes_to_the_artifact_itself_unless_another_place_is_named() -> None:
    assert results_uri("minio://bucket/run/model", "") == "minio://bucket/run/model"
    assert results_uri("minio://bucket/run/model", "s3://mine/out") == "s3://mine/out"
    with pytest.raises(SpecError, match=r"outputs_uri must be set where artifacts are local"):
        results_uri("/runs/model", "")
    with pytest.raises(SpecError, match="outputs_uri: uri must be a local path, s3:// or minio://"):
        results_uri("/runs/model", "ftp://host/out")


def test_results_may_lie_on_a_claim_that_the_step_has_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results_uri("/runs/model", str(tmp_path)) == str(tmp_path)
    (tmp_path / "file").touch()
    refused = r"or a folder that this step can write as well, got /"
    for path in ("/absent/results", str(tmp_path / "file")):
        with pytest.raises(SpecError, match=refused):
            results_uri("/runs/model", path)
    # What a mount that is only read says; tests may run as root, to whom no folder says it.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SpecError, match=refused):
        results_uri("/runs/model", str(tmp_path))


def test_a_training_keeps_its_names_over_retries_and_shares_them_with_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def identity(run_id: str, uri: str = "minio://bucket/run/model", sha256: str = "c") -> Any:
        monkeypatch.setenv("KFP_RUN_ID", run_id)
        data = dataclasses.replace(DATA, dataset_sha256=sha256 * 64)
        model = SimpleNamespace(uri=uri, path="/model", metadata={})
        return training_identity(model, data)

    one = identity("run-of-today-1")
    assert one == identity("run-of-today-1")
    assert one.folder.startswith(f"{one.name}-")
    others = [
        identity("run-of-today-2"),
        identity("run-of-today-1", uri="minio://bucket/run/other"),
        identity("run-of-today-1", sha256="d"),
    ]
    assert len({each.folder for each in (one, *others)}) == 4
    assert others[0].name == one.name, "which is why the name alone would not do"


def test_the_job_gets_the_resolved_spec_with_the_data_of_the_manifest() -> None:
    job = settings_of()
    experiment = load_spec("train", yaml.safe_load(job.spec))
    recipe = load_spec("train", "recipe:scratch", ["results_dir=x"])
    assert experiment.train.lr == 3e-4
    assert experiment.train.max_steps == recipe.train.max_steps
    assert experiment.dataset.train_ann_path == "s3://bucket/train.json"
    assert experiment.dataset.val_ann_path == ""
    assert (job.num_nodes, job.resources.gpus_per_node) == (3, 2)


def test_the_jobs_pods_get_what_the_manifests_make_unless_the_user_names_an_environment() -> None:
    variables = variables_of(settings_of())
    assert variables["MAL_S3_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "mal-s3",
        "key": "MAL_S3_SECRET_ACCESS_KEY",
        "optional": True,
    }
    assert "MAL_S3_ENDPOINT_URL" in variables
    assert not [name for name in variables if name.startswith("AWS_")]
    own = {"environment": {"values": {"AWS_REGION": "eu-1"}}}
    variables = variables_of(settings_of(job=own))
    assert "MAL_S3_SECRET_ACCESS_KEY" not in variables
    assert variables["AWS_REGION"]["value"] == "eu-1"


def test_the_jobs_pods_reach_kubeflows_own_stores_without_the_clusters_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = {"secretName": "team", "accessKeyKey": "a.key", "secretKeyKey": "s.key"}
    providers = {"s3": {"default": {"endpoint": "e", "credentials": {"secretRef": reference}}}}
    monkeypatch.setenv("MAL_KFP_PROVIDERS", yaml.safe_dump(providers))
    monkeypatch.setenv("MAL_PIPELINE_ROOTS", "s3://own-root")
    variables = variables_of(settings_of(job={"environment": {"values": {"A": "b"}}}))
    references = {
        name: each["valueFrom"]["secretKeyRef"]
        for name, each in variables.items()
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    assert references == {
        name: {"name": secret, "key": key, "optional": True}
        for name, secret, key in (
            (
                "MAL_KFP_MLPIPELINE_MINIO_ARTIFACT__ACCESSKEY",
                "mlpipeline-minio-artifact",
                "accesskey",
            ),
            (
                "MAL_KFP_MLPIPELINE_MINIO_ARTIFACT__SECRETKEY",
                "mlpipeline-minio-artifact",
                "secretkey",
            ),
            ("MAL_KFP_TEAM__A_KEY", "team", "a.key"),
            ("MAL_KFP_TEAM__S_KEY", "team", "s.key"),
        )
    }
    assert variables["MAL_KFP_PROVIDERS"]["valueFrom"]["configMapKeyRef"] == {
        "name": "kfp-launcher", "key": "providers", "optional": True,
    }  # fmt: skip
    assert variables["MAL_PIPELINE_ROOTS"]["value"] == "s3://own-root"


def test_the_pod_of_a_step_is_known_only_with_its_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert training_job.own_pod() is None
    monkeypatch.setattr(training_job, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", "run-7f3-step")
    monkeypatch.setenv("KFP_POD_UID", "0123-4567")
    assert training_job.own_pod() is None
    (tmp_path / "namespace").write_text("team")
    assert training_job.own_pod() == StepPod("team", "run-7f3-step", "0123-4567")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "has no checkpoint yet: training starts from its beginning."),
        (
            ["mal_model_epoch_001_step_00100.pth", "mal_model_epoch_002_step_00213.pth",
             "mal_model_latest.pth", "metrics.jsonl"],
            "The last checkpoint is mal_model_epoch_002_step_00213.pth in ",
        ),
        (
            ["mal_model_epoch_001_step_99000.pth", "mal_model_epoch_001_step_100500.pth"],
            "The last checkpoint is mal_model_epoch_001_step_100500.pth in ",
        ),
    ],
    ids=["none", "two", "six digits"],
)  # fmt: skip
def test_the_last_checkpoint_is_named(tmp_path: Path, names: list[str], expected: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    assert expected in training_job.last_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"overrides": ["results_dir=/x"]},
            "results_dir must not be overridden in a pipeline",
            id="results",
        ),
        pytest.param(
            {"job": {"resources": {"gpus_per_node": 8}}},
            "job.resources.gpus_per_node must be given once",
            id="GPUs twice",
        ),
        pytest.param({"job": {"num_nodes": 8}}, "job.num_nodes must be left out", id="nodes twice"),
        pytest.param({"job": {"spec": "a"}}, "job.spec must be left out", id="spec twice"),
        pytest.param({"job": {"resorces": {}}}, "Did you mean resources?", id="typing error"),
    ],
)
def test_what_a_job_cannot_be_told_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        settings_of(**changes)
    assert message in str(error.value)


def test_local_data_must_lie_on_a_claim_of_the_job() -> None:
    split = dataclasses.replace(
        SPLIT, images_uri="/data/images", annotations_uri="/data/train.json"
    )
    data = DatasetManifest("c" * 64, split, None, split)
    with pytest.raises(SpecError) as error:
        settings_of(data)
    assert [problem.partition(" must")[0] for problem in error.value.problems] == [
        "dataset.train_ann_path",
        "dataset.train_img_dir",
    ]
    claims = {"storage": {"claims": [{"claim": "sets", "mount_path": "/data"}]}}
    assert settings_of(data, job=claims).storage.claims[0].mount_path == "/data"


def test_gpus_may_be_left_to_the_jobs_settings() -> None:
    job = settings_of(gpus_per_node=-1, job={"resources": {"gpus_per_node": 8.0}})
    assert job.resources.gpus_per_node == 8


def write_results(folder: Path) -> None:
    (folder / "lightning_logs").mkdir(parents=True)
    for name in ("mal_model_latest.pth", "lightning_logs/events", "experiment.yaml"):
        (folder / name).write_text(name)
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))
    (folder / "status.json").write_text("")


def test_what_a_job_left_is_copied_or_only_looked_at(tmp_path: Path) -> None:
    write_results(tmp_path / "claim")
    copied = collect_results(str(tmp_path / "claim"), tmp_path / "model", is_artifact=False)
    assert (copied / "mal_model_latest.pth").read_text() == "mal_model_latest.pth"
    assert (copied / "lightning_logs" / "events").exists()
    seen = collect_results(str(tmp_path / "claim"), tmp_path / "small", is_artifact=True)
    assert {path.name for path in seen.iterdir()} == {
        "experiment.yaml", "manifest.json", "status.json",
    }  # fmt: skip


def test_a_job_that_left_nothing_is_an_error_that_says_where_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    with pytest.raises(ArtifactError, match=r"The job left no experiment\.yaml in /"):
        collect_results(str(tmp_path / "claim"), tmp_path / "model", is_artifact=False)
