"""The whole of it: a launcher, an operator, two pods, and real training into an object store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn
from tiny_sets import HYBRID, write_tiny_set

from cluster.launching import Launch
from cluster.real_training import SPEC, prepare, upload
from mal.cluster import Environment, SecretKey
from mal.storage.stores import SECRET_VARIABLES


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pytorchjob", "trainjob"])
def test_two_pods_train_together_and_leave_their_results_in_the_object_store(
    cluster: StandIn, launch: Callable[..., Launch], s3: Any, tmp_path: Path, backend: str
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
            secrets={name: SecretKey(secret="mal-s3", key=name) for name in SECRET_VARIABLES[:2]},
            config_map="mal-config",
        ),
    )
    started.wait_for_line("all pods run", timeout_s=60)
    logs = [cluster.api.logs["team", name] for name in cluster.pod_names()]
    started.result(timeout_s=280)

    (port,) = {run.variables["PET_MASTER_PORT"] for run in cluster.kubelet.runs.values()}
    printed = ["\n".join(text for _, text in log.read()) for log in logs]
    for rank, text in enumerate(printed):
        assert f"node {rank} of 2 waits for the others at 127.0.0.1:{port}" in text
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
    assert "tester-secret" not in json.dumps([manifest, printed, cluster.objects(f"{backend}s")])
