"""The whole of it: a launcher, an operator, two pods, and real training into an object store."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn
from tiny_sets import HYBRID, TinySet, write_tiny_set

from cluster.launching import IMAGE, Launch
from mal.cluster import Backend, Environment, SecretKey

ROOT = Path(__file__).parents[3]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester-secret"}
SPEC = """\
dataset: {min_obj_size: 0, num_workers_per_gpu: 0}
train: {num_epochs: 2, batch_size: 2, lr: 1e-3, loss_mil_step: 0, loss_crf_step: 0}
evaluate: {batch_size: 4}
device: cpu
wandb: {enable: false}
"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an object store with the bucket `bucket`."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="tester",
        aws_secret_access_key="tester-secret",
    )
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def upload(s3: Any, data: TinySet) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(data.images, "images")
    s3.put_object(Bucket="bucket", Key="set/images.tar.gz", Body=archive.getvalue())
    s3.put_object(Bucket="bucket", Key="set/boxes.json", Body=data.annotations.read_bytes())


def prepare(cluster: StandIn, s3: Any) -> None:
    """Make what an operator of the cluster makes: the image, the Secret, the ConfigMap."""
    cluster.add_image(IMAGE, f'exec {sys.executable} -m mal "$@"')
    cluster.kubelet.variables |= {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"}
    cluster.add_object("secrets", {"metadata": {"name": "mal-s3"}, "stringData": CREDENTIALS})
    place = {"AWS_ENDPOINT_URL_S3": s3.meta.endpoint_url, "AWS_REGION": "us-east-1"}
    cluster.add_object("configmaps", {"metadata": {"name": "mal-config"}, "data": place})


@pytest.mark.slow
@pytest.mark.parametrize("backend", [Backend.PYTORCHJOB, Backend.TRAINJOB])
def test_two_pods_train_together_and_leave_their_results_in_the_object_store(
    cluster: StandIn, launch: Callable[..., Launch], s3: Any, tmp_path: Path, backend: Backend
) -> None:
    prepare(cluster, s3)
    upload(s3, write_tiny_set(tmp_path / "set", num_images=4))
    source = "s3://bucket/set"
    started = launch(
        backend=backend,
        outputs_uri="s3://bucket/run/model",
        spec=SPEC,
        overrides=(
            *HYBRID,
            f"dataset.train_ann_path={source}/boxes.json",
            f"dataset.train_img_dir={source}/images.tar.gz",
            f"dataset.val_ann_path={source}/boxes.json",
            f"dataset.val_img_dir={source}/images.tar.gz",
        ),
        environment=Environment(
            secrets={name: SecretKey(secret="mal-s3", key=name) for name in CREDENTIALS},
            config_map="mal-config",
        ),
    )
    started.wait_for_line("all pods run", timeout_s=60)
    logs = [cluster.api.logs["team", name] for name in cluster.pod_names()]
    started.result(timeout_s=280)

    (port,) = {run.variables["PET_MASTER_PORT"] for run in cluster.kubelet.runs.values()}
    told = ["\n".join(text for _, text in log.read()) for log in logs]
    for rank, text in enumerate(told):
        assert f"node {rank} of 2: 1 processes, meeting at 127.0.0.1:{port}" in text
    assert "node 0 of 2" in started.text

    def read(name: str) -> str:
        return str(s3.get_object(Bucket="bucket", Key=f"run/model/{name}")["Body"].read().decode())

    statuses = [json.loads(line) for line in read("status.json").splitlines()]
    assert statuses[-1]["status"] == "SUCCESS"
    assert len(read("metrics.jsonl").splitlines()) == 2
    found = s3.list_objects_v2(Bucket="bucket", Prefix="run/model/")["Contents"]
    names = {each["Key"].rsplit("/", 1)[-1] for each in found}
    assert {"mal_model_latest.pth", "mal_model_best.pth", "manifest.json"} <= names
    manifest = json.loads(read("manifest.json"))
    assert "tester-secret" not in json.dumps([manifest, told, cluster.objects(f"{backend}s")])
