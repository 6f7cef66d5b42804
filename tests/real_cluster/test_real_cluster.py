"""The product on a real Kubeflow: twelve scenarios, one after the other, with two CPUs.

They run in the order of this file: the branches of `retrain` build on each other, and `label_only`
labels with the champion.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from live_cluster import RUN_LABEL, SMALL_JOB, STEP_LABEL, RealCluster

pytestmark = pytest.mark.cluster

RETRAIN: dict[str, Any] = {
    "quiet_period_s": 0,
    "automl_policy": "off",
    "min_gain": -1,  # two steps of training beat nothing
    "miou_margin": 1,
    "category_margin": 1,
}
LONG = ["train.num_epochs=2000", "train.max_steps=-1", "train.checkpoint_interval=1"]


def distributed(cluster: RealCluster, **more: Any) -> dict[str, Any]:
    return {**cluster.data, "num_nodes": 2, "gpus_per_node": 0, "job": SMALL_JOB, **more}


def skip_without(cluster: RealCluster, kind: str) -> None:
    done = subprocess.run(["kubectl", "get", "crd", kind], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"the cluster has no {kind}")


def jobs_of(cluster: RealCluster, run_id: str) -> list[dict[str, Any]]:
    return cluster.objects("pytorchjobs", f"{RUN_LABEL}={run_id}")


def retrain(cluster: RealCluster, **more: Any) -> dict[str, Any]:
    return {**cluster.data, **RETRAIN, "store": cluster.model_store, **more}


def step_names(cluster: RealCluster, run_id: str) -> set[str]:
    lines = cluster.mal("status", run_id, *cluster.connection()).splitlines()[1:]
    return {line.split()[0] for line in lines if "SUCCEEDED" in line}


def test_doctor_finds_every_need_met(cluster: RealCluster) -> None:
    options = ["--namespace", cluster.namespace, "--host", cluster.host]
    assert "all needs are met" in cluster.mal("doctor", *options)


def test_auto_label_succeeds_and_its_logs_and_lineage_are_found(cluster: RealCluster) -> None:
    run_id = cluster.succeed("auto_label", {**cluster.data, "automl_policy": "off"})
    cluster.kubectl("delete", "workflows.argoproj.io", "-l", f"{STEP_LABEL}={run_id}")
    steps = {"snapshot-dataset", "tune", "evaluate", "inference", "export"}
    assert steps <= step_names(cluster, run_id)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("pytorchjob", "pytorchjobs.kubeflow.org"),
        ("trainjob", "trainjobs.trainer.kubeflow.org"),
    ],
)
def test_two_nodes_train_by_either_operator(backend: str, kind: str, cluster: RealCluster) -> None:
    skip_without(cluster, kind)
    runtime = {"training_runtime": {"name": "mal-torch", "kind": "TrainingRuntime"}}
    job = {**SMALL_JOB, **(runtime if backend == "trainjob" else {})}
    cluster.succeed("auto_label_distributed", distributed(cluster, backend=backend, job=job))


def test_terminate_deletes_the_training_job(cluster: RealCluster) -> None:
    skip_without(cluster, "pytorchjobs.kubeflow.org")
    run_id = cluster.submit("auto_label_distributed", distributed(cluster, overrides=LONG))
    cluster.wait_for(lambda: jobs_of(cluster, run_id), "training job", 240)
    cluster.client.terminate_run(run_id)
    cluster.wait_for(lambda: not jobs_of(cluster, run_id), "deletion of the training job", 90)


def test_an_evicted_step_goes_on_with_its_job(cluster: RealCluster) -> None:
    skip_without(cluster, "pytorchjobs.kubeflow.org")
    more = ["train.num_epochs=40", "train.max_steps=-1", "train.checkpoint_interval=1"]
    run_id = cluster.submit("auto_label_distributed", distributed(cluster, overrides=more))
    (job,) = cluster.wait_for(lambda: jobs_of(cluster, run_id), "training job", 240)
    assert job["metadata"]["ownerReferences"][0]["kind"] == "Workflow"
    (step,) = (
        pod["metadata"]["name"]
        for pod in cluster.objects("pods", f"pipeline/runid={run_id}")
        if pod["status"]["phase"] == "Running" and "driver" not in pod["metadata"]["name"]
    )
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": step, "namespace": cluster.namespace},
    }
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{step}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    assert cluster.wait(run_id) == "SUCCEEDED"
    assert {each["metadata"]["uid"] for each in jobs_of(cluster, run_id)} <= {
        job["metadata"]["uid"]
    }


def test_retrain_promotes_its_first_champion(cluster: RealCluster) -> None:
    run_id = cluster.succeed("retrain", retrain(cluster, min_new_annotations=1))
    assert "promote" in " ".join(step_names(cluster, run_id))


def test_retrain_without_new_annotations_trains_nothing(cluster: RealCluster) -> None:
    run_id = cluster.succeed("retrain", retrain(cluster, min_new_annotations=1))
    steps = step_names(cluster, run_id)
    assert "record-skip" in steps
    assert "train-challenger" not in steps


def test_retrain_compares_a_challenger_with_the_champion(cluster: RealCluster) -> None:
    cluster.make_data(seed=1)
    run_id = cluster.succeed("retrain", retrain(cluster, min_new_annotations=1))
    assert "evaluate-champion" in step_names(cluster, run_id)


def test_label_only_labels_with_the_champion(cluster: RealCluster) -> None:
    data = f"{cluster.folder}/data"
    parameters = {
        "images": f"{data}/images",
        "annotations": f"{data}/train.json",
        "model": cluster.model_store,
        "work_dir": f"{cluster.folder}/shards",
        "boxes_per_shard": 20,
    }
    cluster.succeed("label_only", parameters)


def test_a_schedule_starts_a_run_within_its_minute(cluster: RealCluster) -> None:
    name = f"{cluster.name}-minutely"
    options = cluster.options(retrain(cluster, min_new_annotations=10**6))
    own = ["--experiment", cluster.name]
    cluster.mal(
        "schedule", "apply", "retrain", "--name", name, "--cron", "0 * * * * *", *options, *own
    )
    try:

        def started() -> bool:
            page = cluster.client.list_runs(page_size=100, namespace=cluster.namespace)
            return any(name in str(run.display_name) for run in page.runs or ())

        cluster.wait_for(started, "scheduled run", 150)
    finally:
        cluster.mal("schedule", "remove", name, *cluster.connection(), *own)


def test_the_restricted_overlay_applies_and_keeps_what_the_operator_set(
    cluster: RealCluster,
) -> None:
    """Kubeflow Pipelines alone serves one namespace: the overlay is applied, not run in."""
    existing = subprocess.run(["kubectl", "get", "ns", "mal"], capture_output=True, check=False)
    if existing.returncode == 0:
        pytest.skip("the namespace mal exists: it is not this test's")
    apply = ["kubectl", "apply", "-k", "manifests/overlays/restricted"]
    try:
        for _ in range(2):
            subprocess.run(apply, check=True, capture_output=True)
        command = [sys.executable, "-m", "mal", "pipelines", "doctor", "--namespace", "mal"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "ok       Rights of runs" in done.stdout
        assert "ok       Labels" in done.stdout
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "root"},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        }
        with pytest.raises(AssertionError, match="PodSecurity"):
            cluster.kubectl("create", "-f", "-", text=json.dumps(pod), namespace="mal")
    finally:
        subprocess.run(["kubectl", "delete", "ns", "mal", "--wait=false"], check=False)
