from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_jobs import FULL, SMALL, small

from mal.cluster import (
    Environment,
    JobSettings,
    Lifetime,
    Owner,
    Placement,
    Resources,
    SecretKey,
    Security,
    Storage,
    Toleration,
    TrainingRuntime,
    VolumeClaim,
)
from mal.cluster.rules import number_of_quantity
from mal.errors import SpecError

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
SECRET = "hunter2"


def problems_of(**changes: Any) -> list[str]:
    with pytest.raises(SpecError) as raised:
        small(**changes)
    return raised.value.problems


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"name": "Train"}, "job.name"),
        ({"name": "7-train"}, "job.name"),
        ({"name": "a" * 51}, "job.name"),
        ({"name": "a\n"}, "job.name"),
        ({"namespace": "my_team"}, "job.namespace"),
        ({"image": ""}, "job.image"),
        ({"num_nodes": 0}, "job.num_nodes"),
        ({"num_nodes": True}, "job.num_nodes"),
        ({"master_port": 70_000}, "job.master_port"),
        ({"image_pull_policy": "Sometimes"}, "job.image_pull_policy"),
        ({"outputs_uri": "/results"}, "job.outputs_uri"),
        ({"outputs_uri": "ftp://host/x"}, "job.outputs_uri"),
        ({"spec": "train: ["}, "spec must be valid YAML"),
        ({"spec": "# " + "x" * 131_072}, "job.spec must have at most"),
        ({"overrides": ("train.lr",)}, "override must read key=value"),
        ({"overrides": ("results_dir=x",)}, "results_dir must not be overridden"),
        ({"overrides": ("train.results_dir=x",)}, "train.results_dir must not be overridden"),
        ({"resources": Resources(gpus_per_node=-1)}, "job.resources.gpus_per_node"),
        ({"resources": Resources(processes_per_node=2)}, "job.resources.processes_per_node"),
        ({"resources": Resources(cpu="8Gi")}, "job.resources.cpu"),
        ({"resources": Resources(cpu="0")}, "job.resources.cpu"),
        ({"resources": Resources(memory="64")}, "job.resources.memory"),
        ({"resources": Resources(memory="64GB")}, "job.resources.memory"),
        ({"resources": Resources(memory="8Gi")}, "job.resources.shm_size must be below memory"),
        ({"resources": Resources(gpu_resource="gpu")}, "job.resources.gpu_resource"),
        ({"placement": Placement(node_selector={"a b": "c"})}, "job.placement.node_selector"),
        ({"placement": Placement(node_selector={"a": "-c"})}, "job.placement.node_selector.a"),
        ({"placement": Placement(queue_name="a.b")}, "job.placement.queue_name"),
        ({"placement": Placement(priority_class="A")}, "job.placement.priority_class"),
        (
            {"placement": Placement(tolerations=(Toleration(key="a", value="b"),))},
            "job.placement.tolerations[0].value",
        ),
        (
            {"placement": Placement(tolerations=(Toleration(operator="Equal"),))},
            "job.placement.tolerations[0].key",
        ),
        (
            {"placement": Placement(tolerations=(Toleration(effect="Never"),))},
            "job.placement.tolerations[0].effect",
        ),
        ({"storage": Storage(tmp_size="1")}, "job.storage.tmp_size"),
        ({"storage": Storage(cache_claim="A")}, "job.storage.cache_claim"),
        (
            {"storage": Storage(claims=(VolumeClaim(claim="c", mount_path="data"),))},
            "job.storage.claims[0].mount_path",
        ),
        (
            {"storage": Storage(claims=(VolumeClaim(claim="c", mount_path="/cache/x"),))},
            "job.storage.claims[0].mount_path",
        ),
        (
            {
                "storage": Storage(
                    claims=(
                        VolumeClaim(claim="c", mount_path="/a"),
                        VolumeClaim(claim="d", mount_path="/a/b"),
                    )
                )
            },
            "job.storage.claims[1].mount_path",
        ),
        ({"environment": Environment(values={"A-B": "1"})}, "job.environment"),
        ({"environment": Environment(config_map="A")}, "job.environment.config_map"),
        ({"security": Security(service_account="A")}, "job.security.service_account"),
        ({"security": Security(run_as_user=0)}, "job.security.run_as_user"),
        ({"security": Security(fs_group=0)}, "job.security.fs_group"),
        ({"security": Security(image_pull_secrets=("A",))}, "job.security.image_pull_secrets[0]"),
        ({"lifetime": Lifetime(active_deadline_s=0)}, "job.lifetime.active_deadline_s"),
        ({"lifetime": Lifetime(ttl_after_finished_s=-1)}, "job.lifetime.ttl_after_finished_s"),
        ({"lifetime": Lifetime(termination_grace_s=0)}, "job.lifetime.termination_grace_s"),
        ({"lifetime": Lifetime(restart_policy="Always")}, "job.lifetime.restart_policy"),
        ({"lifetime": Lifetime(restart_policy="OnFailure")}, "job.lifetime.backoff_limit"),
        ({"lifetime": Lifetime(backoff_limit=3)}, "job.lifetime.backoff_limit"),
        ({"lifetime": Lifetime(clean_pod_policy="Some")}, "job.lifetime.clean_pod_policy"),
        ({"labels": {"run": "a b"}}, "job.labels.run"),
        ({"labels": {"run": "a" * 64}}, "job.labels.run"),
        ({"labels": {"sidecar.istio.io/inject": "true"}}, "job.labels must not set"),
        ({"labels": {"training.kubeflow.org/job-name": "x"}}, "job.labels must not set"),
        ({"annotations": {"a b": "c"}}, "job.annotations"),
        ({"owner": Owner(name="pod", uid="")}, "job.owner"),
        ({"training_runtime": TrainingRuntime(kind="Runtime")}, "job.training_runtime.kind"),
        ({"training_runtime": TrainingRuntime(name="")}, "job.training_runtime.name"),
    ],
    ids=repr,
)
def test_a_mistake_is_one_problem_with_its_setting_and_a_remedy(
    changes: dict[str, Any], setting: str
) -> None:
    (problem,) = problems_of(**changes)
    assert problem.startswith(setting)
    assert re.search(r" must .*[.:] .*\.$", problem)


def test_all_problems_come_at_once() -> None:
    problems = problems_of(name="A", namespace="B", resources=Resources(memory="x"), num_nodes=0)
    assert len(problems) == 4


@pytest.mark.parametrize(
    "name",
    [
        "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PET_NNODES",
        "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT",
        "NUM_GPU_PER_NODE", "MAL_SPEC", "MAL_CACHE_DIR",
    ],
)  # fmt: skip
def test_what_the_operator_or_the_job_sets_cannot_be_set(name: str) -> None:
    key = SecretKey(secret="s", key="k")
    for environment in (Environment(values={name: "1"}), Environment(secrets={name: key})):
        (problem,) = problems_of(environment=environment)
        assert problem.startswith(f"job.environment.{name} must be left out")


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": Environment(values={"AWS_SECRET_ACCESS_KEY": SECRET})},
        {"environment": Environment(values={"WANDB_API_KEY": SECRET})},
        {"environment": Environment(values={"HF_TOKEN": SECRET})},
        {"environment": Environment(values={"PROXY": f"http://me:{SECRET}@host"})},
        {"environment": Environment(secrets={"K": SecretKey(secret=f"{SECRET}!", key="k")})},
        {"environment": Environment(secrets={"K": SecretKey(secret="s", key=f"{SECRET}/+")})},
        {"spec": f"results_dir: s3://me:{SECRET}@bucket/x"},
        {"spec": f"encryption_key: {SECRET}"},
        {"overrides": (f"encryption_key={SECRET}",)},
        {"overrides": (f"dataset.train_img_dir=s3://me:{SECRET}@bucket/x",)},
        {"outputs_uri": f"s3://me:{SECRET}@bucket/x"},
        {"outputs_uri": f"s3://bucket/x?X-Amz-Signature={SECRET}"},
        {"overrides": (f"dataset.train_img_dir=s3://bucket/x?a=1&X-Amz-Credential={SECRET}",)},
        {"environment": Environment(values={"DATA": f"https://a.b/c?sv=1&sig={SECRET}"})},
        {"annotations": {"example.com/source": f"https://me:{SECRET}@host/x"}},
        {"image": f"me:{SECRET}@registry.example.com/mal/train:1"},
        {"image": f"https://me:{SECRET}@registry.example.com/mal/train:1"},
        {"image": f"me:{SECRET}@registry.example.com/mal/train@sha256:{'0' * 64}"},
    ],
    ids=repr,
)
def test_a_secret_value_is_refused_and_never_repeated(changes: dict[str, Any]) -> None:
    assert SECRET not in "".join(problems_of(**changes))


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD", "KAGGLE_KEY", "OPENAI_KEY", "OPENAI_KEY_2", "GITHUB_PAT", "AZURE_SAS",
        "MYSQL_PWD", "SMTP_PASS", "HFTOKEN", "AWS_ACCESS_KEY_ID", "APIKEY", "db_password",
        "AZURE_STORAGE_CONNECTION_STRING", "CLIENT_SECRETS", "SSH_PRIVATE_KEY_PEM",
    ],
)  # fmt: skip
def test_variables_that_sound_secret_must_refer_to_a_secret(name: str) -> None:
    (problem,) = problems_of(environment=Environment(values={name: SECRET}))
    assert problem.startswith(f"job.environment.values.{name} must not carry a secret, got a value")
    assert SECRET not in problem


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "MONKEY", "MAX_TOKENS", "PWD",
        "OLDPWD", "PATH", "PATIENCE", "COMPASS", "KEYBOARD", "SORT_KEYS", "NCCL_IB_PKEY",
        "JWT_PUBLIC_KEY", "PASSES", "SASL_MECHANISM", "SECRETARY",
    ],
)  # fmt: skip
def test_variables_that_only_sound_secret_are_taken(name: str) -> None:
    assert small(environment=Environment(values={name: "x"})).environment.values == {name: "x"}


def test_an_image_may_be_pinned_by_its_digest() -> None:
    image = f"registry.example.com:5000/mal/train:1@sha256:{'0' * 64}"
    assert small(image=image).image == image


def test_results_may_lie_on_a_claim_that_can_be_written() -> None:
    claim = VolumeClaim(claim="results", mount_path="/results", read_only=False)
    assert small(outputs_uri="/results/run", storage=Storage(claims=(claim,)))
    read_only = dataclasses.replace(claim, read_only=True)
    for uri, storage in (
        ("/results/run", Storage(claims=(read_only,))),
        ("/results/../run", Storage(claims=(claim,))),
    ):
        assert "lost with the pod" in problems_of(outputs_uri=uri, storage=storage)[0]


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), ("8", "8"), ("1.5Gi", str(3 * 2**29)), ("2G", str(2 * 10**9))],
)
def test_quantities_are_kubernetes_own(text: str, number: str) -> None:
    assert str(number_of_quantity(text)).rstrip("0").rstrip(".") == number.rstrip("0").rstrip(".")


@given(st.text(max_size=10))
def test_any_text_is_a_quantity_or_none(text: str) -> None:
    number = number_of_quantity(text)
    assert number is None or number >= 0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.name = "other"  # type: ignore[misc]


def setting_names(settings: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            names += setting_names(value[0], f"{prefix}{field.name}[].")
        elif dataclasses.is_dataclass(value):
            names += setting_names(value, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name}")
    return names


def test_every_setting_is_in_the_operators_reference() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert [name for name in setting_names(FULL) if f"| `{name}` |" not in text] == []


def test_the_reference_names_no_setting_that_is_gone() -> None:
    table = OPERATIONS.read_text("utf-8").partition("## Settings of a job")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z_.\[\]]+)` \|", table, re.MULTILINE)
    assert set(listed) == set(setting_names(FULL))


def test_defaults_need_four_settings_only() -> None:
    required = {
        field.name
        for field in dataclasses.fields(JobSettings)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert required == {"name", "namespace", "image", "outputs_uri"}
