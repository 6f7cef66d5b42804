"""The objects of both operators, against Kubernetes' models, the pod standard and the facts."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_models import model_problems
from pod_security import restricted_violations
from sample_jobs import FULL, FULL_TRAINJOB, SMALL, jobs, small

from mal.cluster import (
    Environment,
    JobSettings,
    Lifetime,
    Placement,
    Resources,
    SecretKey,
    Security,
    build_pytorchjob,
    build_trainjob,
)
from mal.cluster.pod import escape_expansion
from mal.errors import SpecError
from mal.kfp.components._example_jobs import example_files
from mal.spec import load_spec

Object = dict[str, Any]
both = pytest.mark.parametrize("build", [build_pytorchjob, build_trainjob])


def pod_of_pytorchjob(job: JobSettings) -> Object:
    template: Object = build_pytorchjob(job)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    return template


def pod_of_trainjob(job: JobSettings) -> Object:
    """Merge a TrainJob into the pod of a bare runtime, as Trainer does."""
    spec = build_trainjob(job)["spec"]
    (patch,) = spec["runtimePatches"]
    (replicated_job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: Object = copy.deepcopy(replicated_job["template"]["spec"]["template"])
    trainer = spec["trainer"]
    pod["spec"]["containers"][0] |= {
        "image": trainer["image"],
        "command": trainer["command"],
        "env": trainer["env"],
        "resources": trainer["resourcesPerNode"],
    }
    return pod


both_pods = pytest.mark.parametrize("pod_of", [pod_of_pytorchjob, pod_of_trainjob])


def container_of(pod: Object) -> Object:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def variables_of(pod: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container_of(pod)["env"]}


def expand(text: str) -> str:
    """Replace references as the kubelet does, where no variable is known."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else "<expanded>", text)


def test_pytorchjob_has_one_master_and_workers_for_further_nodes() -> None:
    assert list(build_pytorchjob(SMALL)["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    replicas = build_pytorchjob(small(num_nodes=4))["spec"]["pytorchReplicaSpecs"]
    assert {name: each["replicas"] for name, each in replicas.items()} == {"Master": 1, "Worker": 3}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    assert replicas["Master"]["template"] is not replicas["Worker"]["template"]


def test_pytorchjob_neither_restarts_nor_lingers_by_default() -> None:
    spec = build_pytorchjob(SMALL)["spec"]
    assert spec["runPolicy"] == {
        "activeDeadlineSeconds": 604_800,
        "cleanPodPolicy": "Running",
        "ttlSecondsAfterFinished": 86_400,
    }
    assert spec["pytorchReplicaSpecs"]["Master"]["restartPolicy"] == "Never"


@given(jobs)
def test_pytorchjob_leaves_world_size_the_number_of_nodes(job: JobSettings) -> None:
    spec = build_pytorchjob(job)["spec"]
    assert set(spec) == {"runPolicy", "pytorchReplicaSpecs"}, "nprocPerNode, elasticPolicy: unset"
    assert sum(each["replicas"] for each in spec["pytorchReplicaSpecs"].values()) == job.num_nodes


def test_pytorchjob_says_every_setting() -> None:
    built = build_pytorchjob(FULL)
    assert built["metadata"] == {
        "name": "mal-train-7f3a",
        "namespace": "team",
        "labels": {
            "app.kubernetes.io/name": "mal",
            "app.kubernetes.io/component": "trainer",
            "app.kubernetes.io/instance": "mal-train-7f3a",
            "pipelines.kubeflow.org/run": "r1",
            "kueue.x-k8s.io/queue-name": "gold",
        },
        "annotations": {"example.com/ticket": "any text: 12"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "1-2-3"}
        ],
    }
    policy = built["spec"]["runPolicy"]
    assert policy["schedulingPolicy"] == {"minAvailable": 3, "priorityClass": "high"}
    worker = built["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] == "OnFailure"
    pod = worker["template"]["spec"]
    assert pod["priorityClassName"] == "high"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}
    ]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert container["imagePullPolicy"] == "Always"
    assert container["ports"] == [{"name": "pytorchjob-port", "containerPort": 29400}]


def test_trainjob_has_only_fields_that_trainer_knows() -> None:
    built = build_trainjob(FULL_TRAINJOB)
    assert (built["apiVersion"], built["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec = built["spec"]
    assert set(spec) == {"runtimeRef", "activeDeadlineSeconds", "trainer", "runtimePatches"}
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "mal-torch",
    }
    assert spec["activeDeadlineSeconds"] == 60
    assert spec["trainer"]["numNodes"] == 3
    assert spec["trainer"]["numProcPerNode"] == 4
    (patch,) = spec["runtimePatches"]
    (replicated_job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated_job["name"] == "node"
    pod = replicated_job["template"]["spec"]["template"]["spec"]
    # PodSpecPatch and ContainerPatch of trainer.kubeflow.org/v1alpha1 2.2; env is the trainer's.
    assert set(pod) <= {
        "serviceAccountName", "volumes", "initContainers", "containers", "imagePullSecrets",
        "securityContext", "nodeSelector", "affinity", "tolerations", "schedulingGates",
    }  # fmt: skip
    assert set(container_of({"spec": pod})) <= {"name", "volumeMounts", "securityContext"}
    assert container_of({"spec": pod})["name"] == "node"


def test_trainjob_starts_from_torch_distributed_by_default() -> None:
    assert build_trainjob(SMALL)["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert build_trainjob(SMALL)["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"lifetime": Lifetime(ttl_after_finished_s=1)}, "lifetime.ttl_after_finished_s"),
        ({"lifetime": Lifetime(termination_grace_s=1)}, "lifetime.termination_grace_s"),
        ({"lifetime": Lifetime(clean_pod_policy="All")}, "lifetime.clean_pod_policy"),
        ({"placement": Placement(priority_class="high")}, "placement.priority_class"),
        ({"image_pull_policy": "Always"}, "image_pull_policy"),
        ({"master_port": 29500}, "master_port"),
    ],
    ids=repr,
)
def test_what_a_trainjob_cannot_say_is_refused(changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(SpecError, match=rf"^job\.{setting} must be left out with backend trainjob"):
        build_trainjob(small(**changes))


@both_pods
@given(job=jobs)
def test_pod_meets_the_restricted_standard(pod_of: Any, job: JobSettings) -> None:
    assert restricted_violations(pod_of(job)["spec"]) == []


@both_pods
@pytest.mark.parametrize("job", [SMALL, FULL_TRAINJOB], ids=["small", "full"])
def test_pod_is_one_of_kubernetes_own(pod_of: Any, job: JobSettings) -> None:
    assert model_problems(pod_of(job), "V1PodTemplateSpec") == []


@both
@given(job=jobs)
def test_metadata_is_kubernetes_own_and_the_object_is_plain_yaml(
    build: Any, job: JobSettings
) -> None:
    built = build(job)
    assert model_problems(built["metadata"], "V1ObjectMeta") == []
    assert yaml.safe_load(yaml.safe_dump(built)) == built
    assert build(job) == built


@both_pods
@given(job=jobs)
def test_variables_arrive_as_they_were_given(pod_of: Any, job: JobSettings) -> None:
    variables = variables_of(pod_of(job))
    for name, value in job.environment.values.items():
        assert expand(variables[name]) == value
    if job.spec.startswith("train"):
        assert expand(variables["MAL_SPEC"]) == job.spec
    assert variables["NUM_GPU_PER_NODE"] == str(job.resources.devices_per_node)
    assert not [n for n in variables if n in {"WORLD_SIZE", "RANK"} or n.startswith("PET_")]
    assert len(variables) == len(container_of(pod_of(job))["env"]), "no name stands twice"


@given(st.text(alphabet="$()aB{}", max_size=20))
def test_escaping_outlives_what_kubernetes_expands(text: str) -> None:
    assert expand(escape_expansion(text)) == text


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("recipe:demo", ["-e", "recipe:demo"]),
        ("train:\n  lr: 1e-4\n", ["-e", "env:MAL_SPEC"]),
        ("", []),
    ],
)
@both_pods
def test_the_command_is_mal_train_into_the_outputs(
    pod_of: Any, spec: str, source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pod_of(small(spec=spec, overrides=("train.num_epochs=2",), outputs_uri="s3://b/x: y"))
    command = container_of(pod)["command"]
    assert command[:2] == ["mal", "train"]
    assert command[2 : 2 + len(source)] == source
    assert ("MAL_SPEC" in variables_of(pod)) is ("env:MAL_SPEC" in source)
    monkeypatch.setenv("MAL_SPEC", variables_of(pod).get("MAL_SPEC", ""))
    given_data = ["dataset.train_ann_path=a.json", "dataset.train_img_dir=i"]
    loaded = load_spec("train", source[1:], [*given_data, *command[2 + len(source) :]])
    assert loaded.train.num_epochs == 2
    assert loaded.results_dir == loaded.train.results_dir == "s3://b/x: y"


@both_pods
def test_secrets_are_references(pod_of: Any) -> None:
    env = {each["name"]: each for each in container_of(pod_of(FULL_TRAINJOB))["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"] == {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": {"name": "s3", "key": "secret"}},
    }


@both_pods
def test_a_variable_or_secret_beats_the_config_map(pod_of: Any) -> None:
    key = SecretKey(secret="s", key="k")
    environment = Environment(
        values={"MAL_S3_REGION": "eu"},
        secrets={"MAL_S3_ENDPOINT_URL": key},
        config_map="mal-config",
    )
    env = {
        each["name"]: each for each in container_of(pod_of(small(environment=environment)))["env"]
    }
    assert env["MAL_S3_REGION"]["value"] == "eu"
    assert "secretKeyRef" in env["MAL_S3_ENDPOINT_URL"]["valueFrom"]


@both_pods
def test_shared_memory_is_a_volume_of_its_own(pod_of: Any) -> None:
    pod = pod_of(SMALL)
    (shm,) = [v for v in pod["spec"]["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container_of(pod)["volumeMounts"]


@both_pods
@given(job=jobs)
def test_every_mount_has_its_volume(pod_of: Any, job: JobSettings) -> None:
    pod = pod_of(job)
    mounts = [mount["name"] for mount in container_of(pod)["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod["spec"]["volumes"]]


@both_pods
@pytest.mark.parametrize(
    ("resources", "devices", "gpus", "threads"),
    [
        (Resources(gpus_per_node=4, cpu="16"), "4", "4", "4"),
        (Resources(gpus_per_node=0, processes_per_node=2, cpu="3500m"), "2", None, "1"),
        (Resources(gpus_per_node=0, cpu="500m"), "1", None, "1"),
    ],
)
def test_processes_and_their_threads_follow_the_resources(
    pod_of: Any, resources: Resources, devices: str, gpus: str | None, threads: str
) -> None:
    pod = pod_of(small(resources=resources))
    variables = variables_of(pod)
    assert (variables["NUM_GPU_PER_NODE"], variables["OMP_NUM_THREADS"]) == (devices, threads)
    amounts = container_of(pod)["resources"]
    assert amounts["limits"] == amounts["requests"]
    assert amounts["limits"].get("nvidia.com/gpu") == gpus


@both_pods
@pytest.mark.parametrize(("has_sidecar", "label"), [(False, "false"), (True, "true")])
def test_the_sidecar_is_a_label(pod_of: Any, has_sidecar: bool, label: str) -> None:
    pod = pod_of(small(security=Security(istio_sidecar=has_sidecar)))
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == label


def test_pods_of_a_pytorchjob_have_no_token() -> None:
    assert pod_of_pytorchjob(FULL)["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("spoilt", "violation"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v is a hostPath"),
        ({"securityContext": {"runAsUser": 0}}, "the pod runs as user 0"),
        ({"containers": [{"name": "c"}]}, "c may gain privileges"),
        ({"initContainers": [{"name": "init"}]}, "init keeps capabilities"),
    ],
)
def test_the_check_of_the_standard_finds_violations(spoilt: Object, violation: str) -> None:
    assert violation in restricted_violations(pod_of_pytorchjob(SMALL)["spec"] | spoilt)


def test_the_committed_examples_are_current() -> None:
    stale = [
        path.name
        for path, text in example_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make compile"


def test_jobs_are_built_without_kubernetes_installed() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from mal.cluster import JobSettings, build_pytorchjob, build_trainjob\n"
        "job = JobSettings(name='a', namespace='b', image='c', outputs_uri='s3://b/x')\n"
        "build_pytorchjob(job), build_trainjob(job)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_full_differs_from_the_defaults_everywhere() -> None:
    for name, value in FULL:
        if name not in {"name", "namespace", "image", "outputs_uri"}:
            assert value != getattr(SMALL, name), name
