"""Every object of manifests/, by Kubernetes' models, and what kustomize makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_models import model_problems
from pod_security import restricted_violations

from mal.cluster import JobSettings, Lifetime, TrainingRuntime, build_trainjob, names
from mal.cluster.katib import KatibSearch, build_experiment
from mal.storage.stores import CONFIG_VARIABLES

MANIFESTS = Path(__file__).parents[3] / "manifests"
KUSTOMIZATION = "kustomization.yaml"
OVERLAYS = ["standalone", "multi-user", "restricted"]
EXAMPLE = MANIFESTS / "overlays" / "example"

SETTINGS = EXAMPLE / "settings.yaml"  # a patch
MODELS = {
    "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "ConfigMap": "V1ConfigMap",
    "NetworkPolicy": "V1NetworkPolicy",
    "Namespace": "V1Namespace",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "Secret": "V1Secret",
}
CUSTOM_KINDS = {
    "TrainingRuntime", "LocalQueue", "PyTorchJob", "TrainJob", "CiliumNetworkPolicy",
}  # fmt: skip
# What a kustomization of ours may hold; one with another key is not looked into by these tests.
KUSTOMIZATION_KEYS = {
    "apiVersion", "kind", "namespace", "resources", "components", "patches", "labels",
    "secretGenerator",
}  # fmt: skip

Object = dict[str, Any]


def kustomizations() -> list[Path]:
    return sorted(MANIFESTS.rglob(KUSTOMIZATION))


def short(path: Path) -> str:
    return str(path.relative_to(MANIFESTS))


def read(path: Path) -> Object:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def object_files() -> list[Path]:
    return [
        path
        for path in sorted(MANIFESTS.rglob("*.yaml"))
        if path.name != KUSTOMIZATION and not path.name.endswith("-patch.yaml") and path != SETTINGS
    ]


def objects_of(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def collected(folder: Path) -> Iterator[Object]:
    """Yield the objects of a kustomization and all that it stands on."""
    content = read(folder / KUSTOMIZATION)
    for entry in [*content.get("resources", ()), *(content.get("components") or ())]:
        path = folder / entry
        if path.is_dir():
            yield from collected(path)
        else:
            yield from objects_of(path)


def problems_of(thing: Object) -> list[str]:
    kind = thing["kind"]
    if kind in CUSTOM_KINDS:
        return model_problems(thing["metadata"], "V1ObjectMeta")
    return model_problems(thing, MODELS[kind])


@pytest.mark.parametrize("path", object_files(), ids=short)
def test_every_object_is_one_of_kubernetes_own(path: Path) -> None:
    for thing in objects_of(path):
        assert problems_of(thing) == []


def test_the_check_of_the_models_finds_unknown_missing_and_mistyped_fields() -> None:
    role = {"apiVersion": "v1", "kind": "Role", "rules": [{"verb": ["get"], "resources": "pods"}]}
    problems = model_problems(role, "V1Role")
    assert "V1Role.rules[0].verb is unknown" in problems
    assert "V1Role.rules[0].resources is no list" in problems
    assert any("`verbs`, must not be `None`" in problem for problem in problems)


@pytest.mark.parametrize("path", kustomizations(), ids=short)
def test_every_path_of_a_kustomization_exists(path: Path) -> None:
    content = read(path)
    assert set(content) <= KUSTOMIZATION_KEYS
    for key in ("resources", "components"):
        for entry in content.get(key) or ():
            target = path.parent / entry
            assert target.is_file() or (target / KUSTOMIZATION).is_file(), entry
            if key == "components":
                assert read(target / KUSTOMIZATION)["kind"] == "Component"
    for patch in content.get("patches", ()):
        assert (path.parent / patch["path"]).is_file()
    for generator in content.get("secretGenerator", ()):
        assert all((path.parent / f"{env}.example").is_file() for env in generator["envs"])


@pytest.mark.parametrize("path", kustomizations(), ids=short)
def test_every_patch_names_an_object_of_the_base(path: Path) -> None:
    base = list(collected(MANIFESTS / "base"))
    models = {
        ("Role", "/rules/-"): "V1PolicyRule",
        ("NetworkPolicy", "/spec/egress/-"): "V1NetworkPolicyEgressRule",
    }
    for patch in read(path).get("patches", ()):
        content = yaml.safe_load((path.parent / patch["path"]).read_text(encoding="utf-8"))
        if "target" not in patch:
            named = (content["kind"], content["metadata"]["name"])
            assert named in {(thing["kind"], thing["metadata"]["name"]) for thing in base}
            continue
        kind, pattern = patch["target"]["kind"], patch["target"]["name"]
        names_of_kind = [t["metadata"]["name"] for t in base if t["kind"] == kind]
        assert any(re.fullmatch(pattern, name) for name in names_of_kind)
        for operation in content:
            assert operation["op"] == "add"
            assert model_problems(operation["value"], models[kind, operation["path"]]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_object_that_only_an_operator_knows(overlay: str) -> None:
    """`kubectl apply -k` ends with exit code 1 where the definition of one kind is missing."""
    kinds = {thing["kind"] for thing in collected(MANIFESTS / "overlays" / overlay)}
    assert kinds <= set(MODELS)


def test_a_component_is_one_line_more_in_an_overlay(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for overlay in OVERLAYS:
        folder = tmp_path / "manifests/overlays" / overlay
        with (folder / KUSTOMIZATION).open("a", encoding="utf-8") as file:
            file.write("  - ../../components/trainjob\n")
        kinds = {thing["kind"] for thing in build_with_kustomize(folder)}
        assert "TrainingRuntime" in kinds


def test_kubeflow_pipelines_serves_the_restricted_namespace() -> None:
    """KFP's sync.py and its network policies (manifests/kustomize/third-party) select by these."""
    (namespace,) = objects_of(MANIFESTS / "overlays/restricted/namespace.yaml")
    labels = namespace["metadata"]["labels"]
    assert labels["pipelines.kubeflow.org/enabled"] == "true"
    assert labels["app.kubernetes.io/part-of"] == "kubeflow-profile"


def test_the_settings_of_an_operator_are_a_patch_of_their_own_overlay(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    folder = tmp_path / "manifests/components/s3-secret"
    shutil.copy(folder / "s3.env.example", folder / "s3.env")
    shutil.copytree(EXAMPLE, tmp_path / "manifests/overlays/mine")
    settings = tmp_path / "manifests/overlays/mine/settings.yaml"
    settings.write_text(settings.read_text().replace("https://s3.example.com", "https://mine"))
    built = build_with_kustomize(settings.parent)
    (config,) = [thing for thing in built if thing["kind"] == "ConfigMap"]
    assert config["data"]["MAL_S3_ENDPOINT_URL"] == "https://mine"


@pytest.mark.parametrize(
    ("component", "cidr_or_port"),
    [
        ("openshift", 5353),
        ("gke", "169.254.169.254/32"),
        ("gke", "169.254.169.252/32"),
        ("eks", "169.254.170.23/32"),
    ],
)
def test_a_component_for_a_platform_opens_its_way_for_steps_and_for_training_pods(
    component: str, cidr_or_port: object, tmp_path: Path
) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    folder = tmp_path / "manifests/overlays/restricted"
    with (folder / KUSTOMIZATION).open("a", encoding="utf-8") as file:
        file.write(f"  - ../../components/{component}\n")
    opened = {
        thing["metadata"]["name"]
        for thing in build_with_kustomize(folder)
        if thing["kind"] == "NetworkPolicy" and str(cidr_or_port) in yaml.safe_dump(thing)
    }
    assert opened == {"mal-trainer-egress", "mal-pipeline-egress"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_of_an_overlay_stands_twice(overlay: str) -> None:
    found = [
        (thing["kind"], thing["metadata"]["name"])
        for thing in collected(MANIFESTS / "overlays" / overlay)
    ]
    assert len(found) == len(set(found)) > 5


def test_every_file_is_used() -> None:
    used = {
        path.parent / entry
        for path in kustomizations()
        for entry in read(path).get("resources") or ()
    }
    used |= {
        path.parent / patch["path"]
        for path in kustomizations()
        for patch in read(path).get("patches", ())
    }
    files = set(MANIFESTS.rglob("*.yaml")) - set(kustomizations())
    unused = {path for path in files if path.parent.name != "examples"} - used
    assert unused == set()


def test_no_rule_of_the_launcher_is_a_wildcard_or_reads_all_secrets() -> None:
    (role,) = [thing for thing in collected(MANIFESTS / "base") if thing["kind"] == "Role"]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert rule["resourceNames"] == ["mlpipeline-minio-artifact"]
            assert rule["verbs"] == ["get"]


def test_the_manifests_fit_the_jobs_that_are_built() -> None:
    base = list(collected(MANIFESTS / "base"))
    accounts = {t["metadata"]["name"]: t for t in base if t["kind"] == "ServiceAccount"}
    job = JobSettings(name="a", namespace="b", image="c", outputs_uri="s3://b/x")
    assert accounts[job.security.service_account]["automountServiceAccountToken"] is False
    labels = {names.APP_LABEL: names.APP, names.COMPONENT_LABEL: names.TRAINER_COMPONENT}
    policies = [t for t in base if t["kind"] == "NetworkPolicy"]
    assert policies
    assert all(t["spec"]["podSelector"]["matchLabels"] == labels for t in policies)
    (config,) = [t for t in base if t["kind"] == "ConfigMap"]
    assert set(config["data"]) == set(CONFIG_VARIABLES)


def test_the_training_runtime_gives_what_a_trainjob_cannot_say() -> None:
    (runtime,) = objects_of(MANIFESTS / "components/trainjob/training-runtime.yaml")
    replicated_job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
    assert model_problems(replicated_job["template"], "V1JobTemplateSpec") == []
    pod = replicated_job["template"]["spec"]["template"]["spec"]
    defaults = Lifetime()
    assert pod["restartPolicy"] == defaults.restart_policy
    assert pod["terminationGracePeriodSeconds"] == defaults.termination_grace_s
    assert pod["automountServiceAccountToken"] is False
    assert replicated_job["template"]["spec"]["backoffLimit"] == defaults.backoff_limit
    assert "ttlSecondsAfterFinished" not in runtime["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    job = JobSettings(
        name="a", namespace="b", image="c", outputs_uri="s3://b/x",
        training_runtime=TrainingRuntime(name="mal-torch", kind="TrainingRuntime"),
    )  # fmt: skip
    patched = build_trainjob(job)["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]
    patched_job = patched["spec"]["replicatedJobs"][0]
    assert patched_job["name"] == replicated_job["name"]
    patch = patched_job["template"]["spec"]["template"]["spec"]
    merged = {**pod, **patch, "containers": [container | patch["containers"][0]]}
    assert patch["containers"][0]["name"] == container["name"]
    assert restricted_violations(merged) == []


def test_no_manifest_written_by_hand_names_an_image() -> None:
    files = [path for path in object_files() if path.parent.name != "examples"]
    assert [short(path) for path in files if "image:" in path.read_text(encoding="utf-8")] == []


def may_reach_kubeflow(policies: list[Object], pod: Object, port: int) -> bool:
    """Return whether policies let a pod with these labels open connections to that namespace."""
    to = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
    return any(
        to in way.get("to", ()) and {"port": port, "protocol": "TCP"} in way["ports"]
        for policy in policies
        if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= pod.items()
        for way in policy["spec"].get("egress", ())
    )


def test_katibs_controller_reaches_the_pod_that_suggests_values_where_all_is_denied() -> None:
    policies = {
        thing["metadata"]["name"]: thing["spec"]
        for thing in collected(MANIFESTS / "components/katib")
        if thing["kind"] == "NetworkPolicy"
    }
    policy = policies["mal-search-katib"]
    assert policy["podSelector"] == {
        "matchExpressions": [{"key": "katib.kubeflow.org/deployment", "operator": "Exists"}]
    }
    (way,) = policy["ingress"]
    assert way["ports"] == [{"port": 6789, "protocol": "TCP"}]
    (source,) = way["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kubeflow"}


@pytest.mark.parametrize(
    ("folders", "ports"),
    [(["base"], {9000, 8333}), (["base", "components/katib"], {9000, 8333, 6789})],
    ids=["object store", "and Katib's database manager"],
)
def test_pods_of_a_trial_reach_what_they_need_in_kubeflow(
    folders: list[str], ports: set[int]
) -> None:
    things = [thing for folder in folders for thing in collected(MANIFESTS / folder)]
    policies = [thing for thing in things if thing["kind"] == "NetworkPolicy"]
    job = JobSettings(name="a", namespace="b", image="c", outputs_uri="s3://b/x")
    search = KatibSearch(algorithm="random", parameters=(), num_trials=1, num_parallel=1, seed=0)
    trial = build_experiment(job, search)["spec"]["trialTemplate"]["trialSpec"]
    pod = trial["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]["labels"]
    asked = (9000, 8333, 6789, 3306, 8888)
    assert {port for port in asked if may_reach_kubeflow(policies, pod, port)} == ports


def test_no_manifest_holds_a_credential() -> None:
    kinds = [t["kind"] for path in object_files() for t in objects_of(path)]
    assert "Secret" not in kinds
    example = (MANIFESTS / "components/s3-secret/s3.env.example").read_text(encoding="utf-8")
    assert all(line.endswith("=") for line in example.splitlines())
    ignored = (MANIFESTS.parent / ".gitignore").read_text(encoding="utf-8")
    assert "manifests/components/s3-secret/s3.env\n" in ignored


def build_with_kustomize(folder: Path) -> list[Object]:
    command = next(
        (
            [tool, *arguments]
            for tool, arguments in (("kubectl", ["kustomize"]), ("kustomize", ["build"]))
            if shutil.which(tool)
        ),
        None,
    )
    if command is None:
        pytest.skip("neither kubectl nor kustomize is on PATH")
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_overlay(overlay: str) -> None:
    folder = MANIFESTS / "overlays" / overlay
    namespace = read(folder / KUSTOMIZATION)["namespace"]
    built = build_with_kustomize(folder)
    assert {(t["kind"], t["metadata"]["name"]) for t in built} == {
        (t["kind"], t["metadata"]["name"]) for t in collected(folder)
    }
    for thing in built:
        assert problems_of(thing) == []
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == namespace
    (binding,) = [t for t in built if t["kind"] == "RoleBinding"]
    assert binding["subjects"][0]["namespace"] == namespace


def test_all_components_together_give_the_launcher_all_rights(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    folder = tmp_path / "manifests/components/s3-secret"
    shutil.copy(folder / "s3.env.example", folder / "s3.env")
    overlay = tmp_path / "manifests/overlays/all"
    overlay.mkdir()
    components = [f"../../components/{path.name}" for path in (MANIFESTS / "components").iterdir()]
    content = {"namespace": "all", "resources": ["../../base"], "components": sorted(components)}
    (overlay / KUSTOMIZATION).write_text(yaml.safe_dump(content), encoding="utf-8")
    built = build_with_kustomize(overlay)
    assert [problem for thing in built for problem in problems_of(thing)] == []
    (role,) = [thing for thing in built if thing["kind"] == "Role"]
    resources = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert {"pytorchjobs", "trainjobs", "experiments", "trials", "workloads"} <= resources
    (secret,) = [thing for thing in built if thing["kind"] == "Secret"]
    assert secret["metadata"]["name"] == "mal-s3"
