"""Which store a bucket is in, decided as Kubeflow Pipelines 2.17 decides it for its own."""

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mal.errors import StorageError, StoreAwayError
from mal.storage import stores
from mal.storage.kfp_launcher import secret_variable
from mal.storage.stores import StoreSettings, add_artifact_uri, store_of
from mal.storage.uris import parse_remote_uri

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
OWN = {"MAL_S3_ENDPOINT_URL": "http://minio.example.com", "MAL_S3_ACCESS_KEY_ID": "own",
       "MAL_S3_SECRET_ACCESS_KEY": "own-secret"}  # fmt: skip
ARTIFACT_KEYS = {
    secret_variable("mlpipeline-minio-artifact", "accesskey"): "kfp",
    secret_variable("mlpipeline-minio-artifact", "secretkey"): "kfp-secret",
}
TEAM_KEYS = {
    secret_variable("team", "access"): "team",
    secret_variable("team", "secret"): "team-secret",
}
FROM_ENV = {"fromEnv": True}
SEAWEEDFS = "http://seaweedfs.kubeflow:9000"


def secret(name: str, access: str, secret: str) -> dict[str, Any]:
    reference = {"secretName": name, "accessKeyKey": access, "secretKeyKey": secret}
    return {"fromEnv": False, "secretRef": reference}


KFP_SECRET = secret("mlpipeline-minio-artifact", "accesskey", "secretkey")
TEAM_SECRET = secret("team", "access", "secret")


def launcher(root: str = "", **providers: Any) -> dict[str, str]:
    return {"MAL_KFP_PROVIDERS": yaml.safe_dump(providers), "MAL_KFP_PIPELINE_ROOT": root}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [*os.environ]:
        if name.startswith(("AWS_", "MAL_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    resolving(monkeypatch)


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str, error: int = socket.EAI_NONAME) -> None:
    """Let only these names resolve."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        if host in hosts:
            return []
        raise socket.gaierror(error, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def settings(
    monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], uri: str
) -> StoreSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    remote = parse_remote_uri(uri)
    assert remote is not None
    return store_of(remote)


@pytest.mark.parametrize(
    ("environment", "uri", "endpoint", "access_key"),
    [
        pytest.param(POD | OWN, "s3://data/a", "http://minio.example.com", "own", id="the user's"),
        pytest.param(
            POD | OWN | ARTIFACT_KEYS, "minio://mlpipeline/v2/a", SEAWEEDFS, "kfp",
            id="the user's does not capture Kubeflow's artifacts",
        ),
        pytest.param(
            POD | OWN | ARTIFACT_KEYS, "s3://mlpipeline/set/a", SEAWEEDFS, "kfp",
            id="nor its bucket by another scheme",
        ),
        pytest.param(
            POD | OWN | ARTIFACT_KEYS | launcher("minio://other/root"), "s3://other/a", SEAWEEDFS,
            "kfp", id="nor that of defaultPipelineRoot",
        ),
        pytest.param(
            POD | OWN | ARTIFACT_KEYS | {"MAL_PIPELINE_ROOTS": "minio://mine"}, "s3://mine/a",
            SEAWEEDFS, "kfp", id="nor that of the run's own root",
        ),
        pytest.param(
            POD | {"MAL_S3_ACCESS_KEY_ID": "aws", "MAL_S3_SECRET_ACCESS_KEY": "b"}, "s3://data/a",
            "", "aws", id="keys without an endpoint are for AWS",
        ),
        pytest.param(
            POD | {"MAL_S3_ENDPOINT_URL": "http://seaweedfs.kubeflow:8333"} | ARTIFACT_KEYS,
            "s3://data/a", "http://seaweedfs.kubeflow:8333", "kfp",
            id="Kubeflow's own store by its endpoint needs no other keys",
        ),
        pytest.param(POD | ARTIFACT_KEYS, "s3://data/a", SEAWEEDFS, "kfp", id="nothing is set"),
        pytest.param(
            POD | {"AWS_ROLE_ARN": "arn"}, "s3://data/a", "", None, id="an identity of AWS"
        ),
        pytest.param(
            POD | ARTIFACT_KEYS
            | launcher(minio={"default": {
                "endpoint": "store.kf:9000", "disableSSL": True, "credentials": KFP_SECRET}}),
            "minio://mlpipeline/a", "http://store.kf:9000", "kfp", id="providers.minio.default",
        ),
        pytest.param(
            POD | TEAM_KEYS
            | launcher(s3={"default": {"endpoint": "s3.amazonaws.com", "region": "eu-1",
                                       "credentials": TEAM_SECRET}}),
            "s3://data/a", "", "team", id="providers.s3.default of AWS",
        ),
        pytest.param(
            POD | OWN | TEAM_KEYS
            | launcher(s3={
                "default": {"endpoint": "a", "credentials": FROM_ENV},
                "Overrides": [
                    {"bucketName": "data", "keyPrefix": "other/", "credentials": FROM_ENV},
                    {"bucketName": "data", "keyPrefix": "team/", "endpoint": "b.example.com",
                     "credentials": TEAM_SECRET},
                ]}),
            "s3://data/team/a.json", "https://b.example.com", "team",
            id="an override beats the user's endpoint, by bucket and prefix",
        ),
        pytest.param(
            POD | OWN | launcher(s3={"default": {"endpoint": "a", "credentials": FROM_ENV}}),
            "s3://data/a", "http://minio.example.com", "own",
            id="the user's endpoint beats providers.s3.default",
        ),
        pytest.param(
            POD | launcher("s3://kf/root?region=eu-1&endpoint=http://q:9000&disableSSL=true"),
            "s3://kf/root/x/a", "http://q:9000", None, id="the query of defaultPipelineRoot",
        ),
        pytest.param(
            POD | OWN | launcher("s3://kf/root"), "s3://kf/root/x/a", "", None,
            id="an s3:// root without a provider is on AWS, as for Kubeflow",
        ),
        pytest.param({}, "s3://data/a", "", None, id="a person's machine"),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://here"}, "minio://mlpipeline/a", "http://here", None,
            id="a person's port-forward",
        ),
    ],
)  # fmt: skip
def test_every_bucket_has_one_store(
    environment: dict[str, str],
    uri: str,
    endpoint: str,
    access_key: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "seaweedfs.kubeflow")
    found = settings(monkeypatch, environment, uri)
    assert found.endpoint == endpoint
    assert (found.keys.access_key if found.keys else None) == access_key
    assert found.endpoint_source
    assert found.remedy


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        pytest.param(["seaweedfs.kubeflow", "minio-service.kubeflow"], SEAWEEDFS, id="2.16"),
        pytest.param(["minio-service.kubeflow"], "http://minio-service.kubeflow:9000", id="2.15"),
    ],
)
def test_the_service_that_exists_is_found_and_logged_once(
    hosts: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolving(monkeypatch, *hosts)
    caplog.set_level(logging.INFO, logger="mal")
    for key in "ab":
        found = settings(monkeypatch, POD | ARTIFACT_KEYS, f"minio://mlpipeline/{key}")
        assert found.endpoint == expected
    assert [r.getMessage() for r in caplog.records] == [
        f"the object store is {expected}: no setting names one, and this service exists"
    ]


def test_without_any_service_the_configmap_to_change_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StorageError, match=r"ConfigMap kfp-launcher has no providers\.minio"):
        settings(monkeypatch, POD, "minio://mlpipeline/a")


def test_a_silent_name_service_is_asked_again_and_not_taken_for_a_missing_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, error=socket.EAI_AGAIN)
    with pytest.raises(StoreAwayError, match="Check the cluster's DNS"):
        settings(monkeypatch, POD, "s3://data/a")


def test_the_buckets_of_a_steps_artifacts_are_kubeflows(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "seaweedfs.kubeflow")
    add_artifact_uri("minio://mine/v2/artifacts/x/dataset")
    add_artifact_uri("/local/path")
    found = settings(monkeypatch, POD | OWN | ARTIFACT_KEYS, "s3://mine/other")
    assert found.endpoint == SEAWEEDFS


@pytest.mark.parametrize(
    "providers",
    [
        pytest.param("[a", id="no YAML"),
        pytest.param("text", id="no mapping"),
        pytest.param("s3: {default: {credentials: {secretRef: {secretName: a}}}}", id="no key"),
    ],
)
def test_providers_that_cannot_be_read_are_named(
    providers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="Cannot read providers of ConfigMap kfp-launcher"):
        settings(monkeypatch, POD | {"MAL_KFP_PROVIDERS": providers}, "s3://data/a")


def test_a_job_without_the_secret_of_its_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    given = launcher(minio={"default": {"endpoint": "a", "credentials": TEAM_SECRET}})
    with pytest.raises(StorageError, match=r"Cannot read Secret team, which providers\.minio"):
        settings(monkeypatch, POD | given, "minio://mlpipeline/a")


def test_no_secret_is_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "own-secret" not in repr(settings(monkeypatch, POD | OWN, "s3://data/a"))


def test_kubeflows_store_without_its_secret_does_not_name_settings_of_other_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "seaweedfs.kubeflow")
    with pytest.raises(StorageError, match="Cannot read Secret mlpipeline-minio-artifact"):
        settings(monkeypatch, {**POD, **OWN}, "minio://mlpipeline/key")


def test_a_step_uses_the_identity_that_its_launcher_uses_for_the_pipeline_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = {name: value for name, value in OWN.items() if name != "MAL_S3_ENDPOINT_URL"}
    environment = {**POD, **keys, **launcher("s3://root/artifacts")}
    of_job = settings(monkeypatch, environment, "s3://root/key")
    assert of_job.keys is not None  # its account has no token, and seldom an identity
    (tmp_path / "token").write_text("of a step")
    monkeypatch.setattr(stores, "ACCOUNT_FOLDER", tmp_path)
    assert settings(monkeypatch, environment, "s3://root/key").keys is None
