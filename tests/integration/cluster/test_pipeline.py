"""The pipeline with its training in two pods: the job's results become the step's artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_in import NAMESPACE, StandIn
from tiny_sets import HYBRID, write_tiny_set

from cluster.launching import IMAGE
from cluster.real_training import CREDENTIALS, ROOT, SPEC, prepare, upload

OUTPUTS = "s3://bucket/run/model"


def run_pipeline(output: Path, s3: Any, **parameters: Any) -> subprocess.CompletedProcess[str]:
    assignments = [
        part
        for name, value in parameters.items()
        for part in ("-p", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    return subprocess.run(
        [
            sys.executable, "-m", "pipelines", "run", "auto_label_distributed",
            "--output", str(output), *assignments,
        ],
        cwd=ROOT,
        env={
            **os.environ,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL_S3": s3.meta.endpoint_url,
            "AWS_REGION": "us-east-1",
            "MAL_CACHE_DIR": str(output / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=840,
    )  # fmt: skip


def metadata_of(run: Path, step: str, artifact: str) -> dict[str, Any]:
    executed = json.loads((run / step / "executor_output.json").read_text())
    found: dict[str, Any] = executed["artifacts"][artifact]["artifacts"][0]["metadata"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pipeline_trains_in_two_pods_and_goes_on_with_their_model(
    cluster: StandIn, s3: Any, tmp_path: Path
) -> None:
    prepare(cluster, s3)
    upload(s3, write_tiny_set(tmp_path / "set", num_images=4))
    ended = run_pipeline(
        tmp_path / "runs",
        s3,
        train_images="s3://bucket/set/images.tar.gz",
        train_annotations="s3://bucket/set/boxes.json",
        spec=SPEC,
        overrides=list(HYBRID),
        image=IMAGE,
        namespace=NAMESPACE,
        outputs_uri=OUTPUTS,
        gpus_per_node=0,
        job={"resources": {"cpu": "1", "memory": "4Gi", "shm_size": "1Gi"}},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = tmp_path / "runs" / "latest"

    (job,) = cluster.objects("pytorchjobs")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert [replicas[role]["replicas"] for role in ("Master", "Worker")] == [1, 1]
    assert "2 steps of 4" in ended.stdout or "steps of 4" in ended.stdout, "both pods' batches"

    model = metadata_of(run, "train-distributed", "model")
    found = s3.list_objects_v2(Bucket="bucket", Prefix="run/model/")["Contents"]
    (folder,) = {"/".join(each["Key"].split("/")[:3]) for each in found}
    assert folder.startswith(f"run/model/{job['metadata']['name']}-")
    written = json.loads(
        s3.get_object(Bucket="bucket", Key=f"{folder}/manifest.json")["Body"].read()
    )
    assert model["sha256"] == written["outputs"]["mal_model_latest.pth"]["sha256"]
    assert model["job"] == f"PyTorchJob {NAMESPACE}/{job['metadata']['name']}"
    assert (model["num_nodes"], model["world_size"]) == (2.0, 2.0)
    assert (
        model["dataset_sha256"] == metadata_of(run, "snapshot-dataset", "dataset")["dataset_sha256"]
    )
    assert (run / "model" / "mal_model_latest.pth").is_file()
    assert not (run / "model" / "mal_model_latest.pth").is_symlink()

    labels = json.loads((run / "labels.json").read_text())
    assert all("segmentation" in annotation for annotation in labels["annotations"])
    assert metadata_of(run, "inference", "labels")["model_sha256"] == model["sha256"]
    for name in ("metrics.json", "report.html", "onnx"):
        assert (run / name).exists()


def test_local_data_is_refused_before_a_job_is_made(
    cluster: StandIn, s3: Any, tmp_path: Path
) -> None:
    data = write_tiny_set(tmp_path / "set", num_images=1)
    ended = run_pipeline(
        tmp_path / "runs",
        s3,
        train_images=str(data.images),
        train_annotations=str(data.annotations),
        namespace=NAMESPACE,
        outputs_uri=OUTPUTS,
    )
    assert ended.returncode == 2
    assert "dataset.train_ann_path must be s3://, minio:// or on a claim" in ended.stderr
    assert cluster.objects("pytorchjobs") == []
