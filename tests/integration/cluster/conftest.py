"""A launcher beside a cluster of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import serving_s3
from stand_in import StandIn

from cluster.launching import IMAGE, JOB, LIMITS, RUN_ID, WAITING_POD, Launch
from mal.cluster import ClusterClient, JobSettings, get_job_kind

pytest.importorskip("kubernetes")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig()))
        cluster.add_image(IMAGE, 'echo "rank $PET_NODE_RANK"; echo done')
        yield cluster


@pytest.fixture
def gate(cluster: StandIn, tmp_path: Path) -> Path:
    """Pods run until this file is there."""
    path = tmp_path / "gate"
    cluster.add_image(IMAGE, WAITING_POD)
    cluster.kubelet.variables["GATE"] = str(path)
    return path


@pytest.fixture
def launch(cluster: StandIn) -> Callable[..., Launch]:
    """Start a launcher; settings of the job and arguments of `run_job` may be given."""

    def start(patience_s: float = 20, backend: str = "pytorchjob", **changes: Any) -> Launch:
        names = set(JobSettings.model_fields)
        settings = {name: value for name, value in changes.items() if name in names}
        arguments = {name: value for name, value in changes.items() if name not in names}
        return Launch(
            **{
                "job": JOB.replace(**settings),
                "kind": get_job_kind(backend),
                "run_id": RUN_ID,
                "client": ClusterClient.connect(patience_s=patience_s),
                "limits": LIMITS,
                **arguments,
            }
        )

    return start


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an object store with the bucket `bucket`."""
    boto3 = pytest.importorskip("boto3")
    with serving_s3() as address:
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="tester",
            aws_secret_access_key="tester-secret",
        )
        client.create_bucket(Bucket="bucket")
        yield client
