"""An object store that speaks real HTTP, and a cache of its own for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from object_store import serving_s3
from tiny_sets import Trained, training_spec, write_tiny_set

from mal.spec import load_spec
from mal.stages import run_export, run_train
from mal.storage import objects, stores

BUCKET = "bucket"

# No test is timed: on a busy machine an example takes as long as it takes.
settings.register_profile("mal", deadline=None)
settings.load_profile("mal")


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that ran in this process keeps mal's log from the root logger."""
    monkeypatch.setattr(logging.getLogger("mal"), "propagate", True)


@pytest.fixture(autouse=True)
def _stores_of_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ran in this process leaves the buckets of its artifacts."""
    monkeypatch.setattr(stores, "_own_roots", {})
    monkeypatch.setattr(stores, "_found", [])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MAL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with serving_s3() as address:
        yield address


@pytest.fixture
def s3_environment(
    s3_endpoint: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    objects._client_of_process.cache_clear()
    yield
    objects._client_of_process.cache_clear()


@pytest.fixture
def s3(s3_environment: None) -> Iterator[Any]:
    """A boto3 client with an empty bucket `bucket`."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One small trained model for all tests of the actions."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_tiny_set(folder / "set", num_images=4)
    spec = training_spec(
        data,
        folder / "train",
        "train.num_epochs=4",
        "train.test_margin_rate=[0.8, 0.8]",
        "train.mask_thres=[0.45]",
        "inference.batch_size=3",
        "inference.use_mixed_model_test=true",
    )
    return Trained(data, run_train(spec))


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, student and teacher averaged, as ONNX."""
    pytest.importorskip("onnxruntime")
    overrides = [
        f"export.checkpoint={trained.result.checkpoint}",
        f"export.results_dir={tmp_path_factory.mktemp('export')}",
        "export.use_mixed_model_test=true",
    ]
    spec = load_spec("export", str(trained.result.results_dir / "experiment.yaml"), overrides)
    return run_export(spec).onnx
