"""`mal pipelines doctor` reads a cluster over HTTP, and prints what it lacks with the command."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_content import MANIFESTS, ClusterContent, add_trainer, complete_cluster, serving

from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._doctor.findings import Plan
from mal.kfp.pipelines._doctor.needs_namespace import COMPONENT_RIGHTS, JOB_RIGHTS, STEP_RIGHTS

pytestmark = pytest.mark.integration

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Doctor]:
    with ExitStack() as stack:

        def run(
            content: ClusterContent, *options: str, namespace: str = "kubeflow"
        ) -> tuple[int, str]:
            config = stack.enter_context(serving(content, tmp_path))
            monkeypatch.setenv("KUBECONFIG", str(config))
            code = main(["doctor", "--namespace", namespace, *options])
            return code, capsys.readouterr().out

        yield run


def test_a_complete_cluster_meets_every_need(doctor: Doctor) -> None:
    code, text = doctor(complete_cluster())
    assert code == 0, text
    assert text.endswith("all needs are met\n")
    assert re.search(r"^ok +Kubeflow Pipelines +2\.17\.0$", text, re.MULTILINE)
    assert re.search(r"^ok +Training operator v1 +1\.9\.4$", text, re.MULTILINE)
    assert "http://seaweedfs.kubeflow:9000, bucket mlpipeline" in text
    for part in ("Trainer v2", "Katib", "Kueue", "GPUs"):
        assert re.search(rf"^optional {part} .+\n +\S", text, re.MULTILINE)


def _old_kfp(content: ClusterContent) -> None:
    content.add_deployment("ml-pipeline", "gcr.io/kfp/api-server:2.15.2", "kubeflow")


def _old_seaweedfs(content: ClusterContent) -> None:
    content.add_deployment("seaweedfs", "chrislusf/seaweedfs:4.00", "kubeflow")


def _no_kfp_pod(content: ClusterContent) -> None:
    content.add_deployment("ml-pipeline", "a/kfp-api-server:2.17.0", "kubeflow", num_ready=0)


def _without_right(content: ClusterContent) -> None:
    role = content.objects[
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kubeflow/roles/mal-launcher"
    ]
    role["rules"] = [rule for rule in role["rules"] if "events" not in rule["resources"]]


def _deny_all(content: ClusterContent) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "deny-all"}, "spec": spec}
    content.add(policy, "kubeflow")


def _quota(content: ClusterContent) -> None:
    quota = {"kind": "ResourceQuota", "metadata": {"name": "team"}}
    content.add({**quota, "spec": {"hard": {"requests.cpu": "8"}}}, "kubeflow")


def _pull_secret(content: ClusterContent) -> None:
    account = content.objects["/api/v1/namespaces/kubeflow/serviceaccounts/mal-launcher"]
    account["imagePullSecrets"] = [{"name": "registry"}]


def _openshift(content: ClusterContent) -> None:
    content.add_kinds("route.openshift.io/v1", "routes")


def removed(part: str) -> Callable[[ClusterContent], None]:
    return lambda content: content.remove(part)


STANDALONE = "manifests/overlays/standalone"


@pytest.mark.parametrize(
    ("change", "need", "fix"),
    [
        (removed("deployments/ml-pipeline"), "Kubeflow Pipelines", "env/platform-agnostic?ref="),
        (_old_kfp, "Kubeflow Pipelines", "env/platform-agnostic?ref="),
        (_no_kfp_pod, "Kubeflow Pipelines", "kubectl -n kubeflow logs deployment/ml-pipeline"),
        (removed("serviceaccounts/mal-launcher"), "Account mal-launcher", f"-k {STANDALONE}"),
        (removed("serviceaccounts/mal-trainer"), "Account mal-trainer", f"-k {STANDALONE}"),
        (_without_right, "Rights of runs", f"kubectl apply -k {STANDALONE}"),
        (removed("secrets/"), "Secret mlpipeline-minio-artifact", "third-party/seaweedfs/base"),
        (removed("services/seaweedfs"), "Object store", "patch configmap kfp-launcher"),
        (_old_seaweedfs, "Conditional writes", "set image deployment/seaweedfs"),
        (removed("networkpolicies/mal-trainer-egress"), "Network policies", f"-k {STANDALONE}"),
        (_deny_all, "Network policies", "apply -f manifests/overlays/restricted/network-policies"),
        (
            _openshift,
            "DNS",
            f"components/openshift' >> {STANDALONE}/kustomization.yaml; }} && kubectl",
        ),
        (_pull_secret, "Pull secrets", "create secret docker-registry registry"),
        (_quota, "Quota", "LimitRange"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_adds_it(
    change: Callable[[ClusterContent], None], need: str, fix: str, doctor: Doctor
) -> None:
    content = complete_cluster()
    change(content)
    code, text = doctor(content)
    assert code == 2
    found = re.search(rf"^missing +{need} .*\n +(.*)$", text, re.MULTILINE)
    assert found, text
    assert fix in found[1]
    assert re.search(r"^1 of \d+ needs are not met$", text, re.MULTILINE), text


def test_a_printed_line_may_be_pasted_twice_and_with_another(tmp_path: Path) -> None:
    plan = Plan("cells", overlay="")
    overlays = tmp_path / "manifests/overlays"
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for component in ("trainjob", "katib", "trainjob"):
        command = plan.apply_with(component).replace("kubectl apply -k", "kubectl kustomize")
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    text = (overlays / "cells/kustomization.yaml").read_text()
    assert re.findall("components/(.*)", text) == ["trainjob", "katib"]
    assert "namespace: cells" in text


def test_a_namespace_that_is_not_there_is_the_only_finding(doctor: Doctor) -> None:
    content = complete_cluster()
    content.remove("namespaces/kubeflow/secrets")
    code, text = doctor(content, namespace="cells")
    assert code == 2
    assert "kubectl create namespace cells && kubectl label namespace cells pipelines." in text
    assert "Account" not in text


def test_pipelines_without_profiles_serve_one_namespace(doctor: Doctor) -> None:
    code, text = doctor(complete_cluster("cells"), namespace="cells")
    assert code == 2
    assert "Kubeflow Pipelines has no profiles here: it serves kubeflow alone" in text
    assert "mal pipelines doctor --namespace kubeflow" in text


def test_an_argo_without_a_default_retry_is_named(doctor: Doctor) -> None:
    content = complete_cluster()
    name = "workflow-controller-configmap"
    config: dict[str, Any] = {"kind": "ConfigMap", "metadata": {"name": name}, "data": {}}
    content.add(config, "kubeflow")
    code, text = doctor(content)
    assert code == 0
    assert "a step whose pod is evicted fails its run" in text
    defaults = "templateDefaults:\n  retryStrategy:\n    retryPolicy: OnError\n"
    content.add({**config, "data": {"workflowDefaults": defaults}}, "kubeflow")
    assert "evicted" not in doctor(content)[1]


def test_a_namespace_beside_that_of_kubeflow_needs_its_labels(doctor: Doctor) -> None:
    content = complete_cluster("cells")
    content.add_deployment("kubeflow-pipelines-profile-controller", "python:3.11", "kubeflow")
    code, text = doctor(content, namespace="cells")
    assert code == 2
    labels = "pipelines.kubeflow.org/enabled=true app.kubernetes.io/part-of=kubeflow-profile"
    assert f"kubectl label --overwrite namespace cells {labels}" in text
    pairs = dict(pair.split("=") for pair in labels.split())
    content.objects["/api/v1/namespaces/cells"]["metadata"]["labels"] = pairs
    assert doctor(content, namespace="cells")[0] == 0


@pytest.mark.parametrize(
    ("part", "need"),
    [("trainjob", "Trainer v2"), ("katib", "Katib"), ("kueue", "Kueue"), ("gpu", "GPUs")],
)
def test_an_optional_part_is_needed_where_the_runs_use_it(
    part: str, need: str, doctor: Doctor
) -> None:
    code, text = doctor(complete_cluster(), "--uses", part)
    assert code == 2
    assert re.search(rf"^missing +{need} ", text, re.MULTILINE)


def test_trainer_2_1_which_drops_runtime_patches_is_not_enough(doctor: Doctor) -> None:
    content = complete_cluster()
    add_trainer(content, "podTemplateOverrides")
    _, text = doctor(content)
    assert re.search(r"^optional Trainer v2 +its TrainJob has no runtimePatches: 2.2", text, re.M)
    add_trainer(content, "runtimePatches")
    content.add_files("components/trainjob", "kubeflow")
    _, text = doctor(content)
    assert re.search(r"^ok +Trainer v2 +2\.3\.0$", text, re.MULTILINE)
    assert re.search(r"^ok +Training runtime +mal-torch$", text, re.MULTILINE)


def test_an_operator_without_a_ready_pod_is_reported(doctor: Doctor) -> None:
    content = complete_cluster()
    content.add_deployment("training-operator", "a/training-operator:v1.9.4", "kubeflow", 0)
    code, text = doctor(content, "--uses", "pytorchjob")
    assert code == 2
    assert "no pod of training-operator is ready" in text
    assert "kubectl -n kubeflow describe deployment training-operator" in text


def test_gpus_of_another_name_are_named(doctor: Doctor) -> None:
    content = complete_cluster()
    status = {"allocatable": {"cpu": "8", "amd.com/gpu": "2"}}
    content.objects["/api/v1/nodes/a"] = {"metadata": {"name": "a"}, "status": status}
    assert "amd.com/gpu: name it by --gpu-resource" in doctor(content)[1]
    code, text = doctor(content, "--gpu-resource", "amd.com/gpu", "--uses", "gpu")
    assert code == 0
    assert "2 amd.com/gpu on 1 of 1 nodes" in text


def test_what_the_user_may_not_read_is_unknown_and_not_met(doctor: Doctor) -> None:
    content = complete_cluster()
    content.has_review_right = False
    content.forbidden = {"/nodes", "/secrets/", "/services/"}
    code, text = doctor(content)
    assert code == 2
    assert re.search(r"^unknown +Rights of runs ", text, re.MULTILINE)
    assert "--as system:serviceaccount:kubeflow:mal-launcher" in text
    assert re.search(r"^unknown +Secret mlpipeline-minio-artifact ", text, re.MULTILINE)
    assert re.search(r"^unknown +Object store ", text, re.MULTILINE)
    assert re.search(r"^optional GPUs +you may not list nodes", text, re.MULTILINE)


def test_the_rights_that_are_checked_are_those_of_the_manifests() -> None:
    def rights_of(rules: list[Any]) -> set[tuple[str, ...]]:
        return {
            (verb, group, *[*resource.split("/"), ""][:2], name)
            for rule in rules
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", [""])
        }

    def checked(rights: Any) -> set[tuple[str, ...]]:
        return {(r.verb, r.group, r.resource, r.subresource, r.name) for r in rights}

    documents = yaml.safe_load_all((MANIFESTS / "base/launcher-role.yaml").read_text())
    (role,) = [thing for thing in documents if thing["kind"] == "Role"]
    assert checked((*JOB_RIGHTS, *STEP_RIGHTS)) == rights_of(role["rules"])
    for component, rights in COMPONENT_RIGHTS.items():
        patch = MANIFESTS / "components" / component / "launcher-role-patch.yaml"
        rules = [operation["value"] for operation in yaml.safe_load(patch.read_text())]
        assert checked(rights) == rights_of(rules)
