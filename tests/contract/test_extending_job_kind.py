"""The example of docs/extending/job_kind.md runs; an incomplete kind says what is missing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import NAMESPACE, StandIn
from stand_in.store import NameTakenError, now

from mal.cluster import (
    ClusterClient,
    JobKind,
    JobSettings,
    Resources,
    WaitLimits,
    backends,
    get_job_kind,
    register_job_kind,
    run_job,
)  # fmt: skip
from mal.errors import ClusterError, SpecError

pytest.importorskip("kubernetes")

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "extending" / "job_kind.md"
IMAGE = "registry.example.com/mal/train:1"
JOB = JobSettings(
    name="mal-7f3a9c12-ab12",
    namespace=NAMESPACE,
    image=IMAGE,
    outputs_uri="s3://bucket/run",
    resources=Resources(gpus_per_node=0, cpu="1", memory="4Gi", shm_size="1Gi"),
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of the page."""
    folder = tmp_path_factory.mktemp("example")
    blocks = re.findall(
        r"```python file=(\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert [name for name, _ in blocks] == ["batchjob.py", "registration.py"]
    for name, text in blocks:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def kind(example: Path, monkeypatch: pytest.MonkeyPatch) -> JobKind:
    monkeypatch.syspath_prepend(str(example))
    monkeypatch.setattr(backends, "_KINDS", dict(backends._KINDS))
    monkeypatch.delitem(sys.modules, "registration", raising=False)
    importlib.import_module("registration")
    return get_job_kind("job")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig()))
        cluster.add_image(IMAGE, 'echo "training"')
        cluster.api.served.add("batch/v1/jobs")
        verbs = ("create", "get", "list", "watch", "patch", "delete")
        cluster.api.rights |= {f"{verb} batch/jobs" for verb in verbs}
        cluster.controllers.append(lambda: reconcile_jobs(cluster))
        yield cluster


def reconcile_jobs(cluster: StandIn) -> None:
    """Do what Kubernetes' Job controller does with a Job of one pod."""
    store = cluster.api.store
    for job in store.list_objects("jobs"):
        metadata = job["metadata"]
        pod = store.get("pods", NAMESPACE, f"{metadata['name']}-x7k2p")
        if pod is None:
            pod = copy.deepcopy(job["spec"]["template"])
            pod["metadata"] |= {"name": f"{metadata['name']}-x7k2p", "namespace": NAMESPACE}
            pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] = metadata["name"]
            pod["metadata"]["ownerReferences"] = [{"kind": "Job", "uid": metadata["uid"]}]
            pod["status"] = {"phase": "Pending"}
            try:
                store.create("pods", pod)
            except NameTakenError:
                continue
        ends = {"Succeeded": "Complete", "Failed": "Failed"}
        end = ends.get(pod["status"].get("phase", ""))
        if end and "conditions" not in job.get("status", {}):
            condition = {"type": end, "status": "True", "lastTransitionTime": now()}
            status = {"startTime": metadata["creationTimestamp"], "conditions": [condition]}
            store.change("jobs", job, functools.partial(_set_status, status))


def _set_status(status: Any, made: Any) -> None:
    made["status"] = status


def run(kind: JobKind, lines: list[str], job: JobSettings = JOB) -> Any:
    return run_job(
        job,
        kind=kind,
        run_id="run-1",
        client=ClusterClient.connect(patience_s=5),
        limits=WaitLimits(start_timeout_s=2, poll_interval_s=0.5),
        log=lines.append,
    )


def test_the_example_is_submitted_watched_and_logged(cluster: StandIn, kind: JobKind) -> None:
    lines: list[str] = []
    finished = run(kind, lines)
    assert (finished.kind, finished.name) == ("Job", JOB.name)
    assert "training" in lines
    assert f"kubectl -n {NAMESPACE} describe jobs.batch {JOB.name}" in lines[0]
    assert lines[-1].startswith(f"Job {NAMESPACE}/{JOB.name} succeeded")


def test_a_retried_step_uses_the_example_job_of_its_earlier_attempt(
    cluster: StandIn, kind: JobKind
) -> None:
    assert run(kind, []) == run(kind, [])
    assert len(cluster.objects("jobs")) == 1


def test_a_failed_example_is_explained_by_its_pod(cluster: StandIn, kind: JobKind) -> None:
    cluster.add_image(IMAGE, 'echo "no space left"; exit 135')
    with pytest.raises(ClusterError, match=r"exit code 135\. /dev/shm was full") as raised:
        run(kind, [])
    assert str(raised.value).splitlines()[-1] == "no space left"


def test_a_pending_example_names_its_reason_and_is_deleted(cluster: StandIn, kind: JobKind) -> None:
    cluster.kubelet.unschedulable = "0/3 nodes are available"
    with pytest.raises(ClusterError, match=r"was not started within 2 s: .* 0/3 nodes"):
        run(kind, [])
    assert cluster.objects("jobs") == []


def test_a_missing_right_to_the_example_names_its_manifest(cluster: StandIn, kind: JobKind) -> None:
    cluster.api.rights.discard("create batch/jobs")
    expected = r"may not create jobs\.batch .* Apply manifests/components/batchjob"
    with pytest.raises(ClusterError, match=expected):
        run(kind, [])


def test_a_setting_that_the_example_cannot_express_is_a_problem_of_the_settings(
    cluster: StandIn, kind: JobKind
) -> None:
    with pytest.raises(SpecError, match=r"job\.num_nodes must be 1 with backend job, got 2"):
        run(kind, [], JOB.replace(num_nodes=2))


def test_the_page_is_enough_for_a_package_outside_of_mal(example: Path) -> None:
    subprocess.run([sys.executable, "registration.py"], cwd=example, check=True, timeout=60)


def test_the_parameter_backend_lists_the_registered_kinds(kind: JobKind) -> None:
    with pytest.raises(SpecError, match="must be pytorchjob or trainjob or job, got 'vcjob'"):
        get_job_kind("vcjob")


def test_a_name_that_is_taken_cannot_be_registered(kind: JobKind) -> None:
    with pytest.raises(SpecError, match=r"got 'pytorchjob': it is PyTorchJob\."):
        register_job_kind("pytorchjob", kind)
    register_job_kind("job", kind)  # an import that is repeated changes nothing


def test_a_kind_without_a_part_cannot_be_made(kind: JobKind) -> None:
    parts = {f.name: getattr(kind, f.name) for f in dataclasses.fields(kind)}
    del parts["read_state"]
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'read_state'"):
        JobKind(**parts)


def test_a_kind_without_pods_must_explain_its_jobs_itself(kind: JobKind) -> None:
    with pytest.raises(TypeError, match="must define find_pending_reason and find_failure"):
        dataclasses.replace(kind, pods=None)


WRONG_OBJECTS = {
    "another kind": (
        {"kind": "Pod"},
        "builds an object with kind 'Pod' where the watch expects 'Job'",
    ),
    "another version": ({"apiVersion": "batch/v2"}, "apiVersion 'batch/v2' where .* 'batch/v1'"),
    "another name": ({"metadata": {"name": "x"}}, "metadata.name 'x' where .* expects 'mal-7f3a"),
    "no labels": (
        {"metadata": {"name": JOB.name, "namespace": NAMESPACE}},
        "label mal.kubeflow.org/run-id None where .* expects 'run-1'.*job_metadata",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_OBJECTS.values(), ids=WRONG_OBJECTS)
def test_an_object_that_the_watch_would_not_find_is_not_submitted(
    cluster: StandIn, kind: JobKind, changes: dict[str, Any], message: str
) -> None:
    wrong = dataclasses.replace(kind, build=lambda job: {**kind.build(job), **changes})
    with pytest.raises(ClusterError, match=message):
        run(wrong, [])
    assert cluster.objects("jobs") == []


def test_pods_that_the_kinds_labels_do_not_find_are_reported_as_missing(
    cluster: StandIn, kind: JobKind
) -> None:
    assert kind.pods is not None
    pods = dataclasses.replace(kind.pods, labels=lambda name: {"job-name": name})
    cluster.add_image(IMAGE, "sleep 30")
    with pytest.raises(ClusterError, match=r"0 of 1 pods exist\. Check that Kubernetes runs"):
        run(dataclasses.replace(kind, pods=pods), [])
