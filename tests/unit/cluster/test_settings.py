from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from sample_jobs import FULL, SMALL, small

from mal.cluster import (
    Environment,
    JobSettings,
    Resources,
    Storage,
    VolumeClaim,
)
from mal.cluster.rules import quantity
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
        ({"overrides": ("results_dir=x",)}, "job.overrides[0] must not set results_dir"),
        (
            {"overrides": ("train.results_dir=x",)},
            "job.overrides[0] must not set train.results_dir",
        ),
        ({"resources": {"gpus_per_node": -1}}, "job.resources.gpus_per_node"),
        ({"resources": {"processes_per_node": 2}}, "job.resources.processes_per_node"),
        ({"resources": {"cpu": "8Gi"}}, "job.resources.cpu"),
        ({"resources": {"cpu": "0"}}, "job.resources.cpu"),
        ({"resources": {"memory": "64"}}, "job.resources.memory"),
        ({"resources": {"memory": "64GB"}}, "job.resources.memory"),
        (
            {"resources": {"memory": "8Gi", "shm_size": "8Gi"}},
            "job.resources.shm_size must be below memory",
        ),
        ({"placement": {"queue_name": "A"}}, "job.placement.queue_name"),
        ({"placement": {"priority_class": "A"}}, "job.placement.priority_class"),
        (
            {"placement": {"tolerations": ({"key": "a", "value": "b"},)}},
            "job.placement.tolerations[0].value",
        ),
        (
            {"placement": {"tolerations": ({"operator": "Equal"},)}},
            "job.placement.tolerations[0].operator",
        ),
        (
            {"placement": {"tolerations": ({"effect": "Never"},)}},
            "job.placement.tolerations[0].effect",
        ),
        ({"storage": {"tmp_size": "1"}}, "job.storage.tmp_size"),
        ({"storage": {"cache_claim": "A"}}, "job.storage.cache_claim"),
        (
            {"storage": {"claims": ({"claim": "c", "mount_path": "data"},)}},
            "job.storage.claims[0].mount_path",
        ),
        (
            {"storage": {"claims": ({"claim": "c", "mount_path": "/cache/x"},)}},
            "job.storage.claims[0].mount_path",
        ),
        (
            {
                "storage": {
                    "claims": (
                        {"claim": "c", "mount_path": "/a"},
                        {"claim": "d", "mount_path": "/a/b"},
                    )
                }
            },
            "job.storage.claims[1].mount_path",
        ),
        ({"environment": {"values": {"A-B": "1"}}}, "job.environment"),
        ({"environment": {"config_map": "A"}}, "job.environment.config_map"),
        ({"security": {"service_account": "A"}}, "job.security.service_account"),
        ({"security": {"run_as_user": 0}}, "job.security.run_as_user"),
        ({"security": {"fs_group": 0}}, "job.security.fs_group"),
        ({"security": {"image_pull_secrets": ("A",)}}, "job.security.image_pull_secrets[0]"),
        ({"lifetime": {"active_deadline_s": 0}}, "job.lifetime.active_deadline_s"),
        ({"lifetime": {"ttl_after_finished_s": -1}}, "job.lifetime.ttl_after_finished_s"),
        ({"lifetime": {"termination_grace_s": 0}}, "job.lifetime.termination_grace_s"),
        ({"lifetime": {"restart_policy": "Always"}}, "job.lifetime.restart_policy"),
        ({"lifetime": {"restart_policy": "OnFailure"}}, "job.lifetime.backoff_limit"),
        ({"lifetime": {"backoff_limit": 3}}, "job.lifetime.backoff_limit"),
        ({"lifetime": {"clean_pod_policy": "Some"}}, "job.lifetime.clean_pod_policy"),
        ({"labels": {"sidecar.istio.io/inject": "true"}}, "job.labels.sidecar.istio.io/inject"),
        ({"labels": {"training.kubeflow.org/job-name": "x"}}, "job.labels.training.kubeflow.org/"),
        ({"training_runtime": {"kind": "Runtime"}}, "job.training_runtime.kind"),
        ({"training_runtime": {"name": ""}}, "job.training_runtime.name"),
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
    problems = problems_of(
        name="A",
        namespace="B",
        resources={"memory": "x", "gpus_per_node": 1, "processes_per_node": 1},
        num_nodes=0,
        outputs_uri="/results",
        spec="encryption_key: x",
        environment={"values": {"A_TOKEN": "x", "B-": "x", "C": "https://me:x@host"}},
    )
    assert [problem.split()[0] for problem in problems] == [
        "job.name",
        "job.namespace",
        "job.spec",
        "job.num_nodes",
        "job.resources.processes_per_node",
        "job.resources.memory",
        "job.outputs_uri",
        "job.environment.values.A_TOKEN",
        "job.environment.values.B-",
        "job.environment.values.C",
    ]


def test_a_group_of_settings_checks_itself_and_hides_what_may_be_a_secret() -> None:
    with pytest.raises(ValidationError, match="must be a size with a unit, got 'x'"):
        Resources(memory="x")
    with pytest.raises(ValidationError) as raised:
        Environment(values={"HF_TOKEN": SECRET})
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PET_NNODES",
        "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT",
        "NUM_GPU_PER_NODE", "MAL_SPEC", "MAL_CACHE_DIR",
    ],
)  # fmt: skip
def test_what_the_operator_or_the_job_sets_cannot_be_set(name: str) -> None:
    for group, value in (("values", "1"), ("secrets", {"secret": "s", "key": "k"})):
        (problem,) = problems_of(environment={group: {name: value}})
        assert problem.startswith(f"job.environment.{group}.{name} must be left out")


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {"values": {"AWS_SECRET_ACCESS_KEY": SECRET}}},
        {"environment": {"values": {"WANDB_API_KEY": SECRET}}},
        {"environment": {"values": {"HF_TOKEN": SECRET}}},
        {"environment": {"values": {"PROXY": f"http://me:{SECRET}@host"}}},
        {"environment": {"secrets": {"K": {"secret": f"{SECRET}!", "key": "k"}}}},
        {"environment": {"secrets": {"K": {"secret": "s", "key": f"{SECRET}/+"}}}},
        {"spec": f"results_dir: s3://me:{SECRET}@bucket/x"},
        {"spec": f"encryption_key: {SECRET}"},
        {"overrides": (f"encryption_key={SECRET}",)},
        {"overrides": (f"dataset.train_img_dir=s3://me:{SECRET}@bucket/x",)},
        {"outputs_uri": f"s3://me:{SECRET}@bucket/x"},
        {"outputs_uri": f"s3://bucket/x?X-Amz-Signature={SECRET}"},
        {"overrides": (f"dataset.train_img_dir=s3://bucket/x?a=1&X-Amz-Credential={SECRET}",)},
        {"environment": {"values": {"DATA": f"https://a.b/c?sv=1&sig={SECRET}"}}},
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
    (problem,) = problems_of(environment={"values": {name: SECRET}})
    assert problem.startswith(f"job.environment.values.{name} must not be a secret, got a value")
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
    read_only = claim.model_copy(update={"read_only": True})
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
    assert str(quantity(text)).rstrip("0").rstrip(".") == number.rstrip("0").rstrip(".")


@given(st.text(max_size=10))
def test_any_text_is_a_positive_quantity_or_a_problem(text: str) -> None:
    try:
        size = Storage(cache_size=text).cache_size
    except ValidationError:
        return
    assert quantity(size) > 0


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SMALL.name = "other"


def setting_names(settings: BaseModel, prefix: str = "") -> list[str]:
    names = []
    for name, value in settings:
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            names += setting_names(value[0], f"{prefix}{name}[].")
        elif isinstance(value, BaseModel):
            names += setting_names(value, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def test_every_setting_is_in_the_operators_reference() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert [name for name in setting_names(FULL) if f"| `{name}` |" not in text] == []


def test_the_reference_names_no_setting_that_is_gone() -> None:
    table = OPERATIONS.read_text("utf-8").partition("## Settings of a job")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z_.\[\]]+)` \|", table, re.MULTILINE)
    assert set(listed) == set(setting_names(FULL))


def test_defaults_need_four_settings_only() -> None:
    fields = JobSettings.model_fields.items()
    required = {name for name, field in fields if field.is_required()}
    assert required == {"name", "namespace", "image", "outputs_uri"}


@pytest.mark.parametrize(
    ("memory", "shm_size"),
    [("32Gi", "8Gi"), ("16Gi", "8Gi"), ("4Gi", "2Gi"), ("1.5Gi", "0.75Gi"), ("5G", "2.5G")],
)
def test_shared_memory_is_by_default_half_of_the_memory_and_at_most_8_gib(
    memory: str, shm_size: str
) -> None:
    assert Resources(memory=memory).shm_size == shm_size


def test_a_job_without_gpus_asks_for_what_a_small_node_has() -> None:
    small = Resources(gpus_per_node=0)
    assert (small.cpu, small.memory, small.shm_size) == ("2", "8Gi", "4Gi")
    given = Resources(gpus_per_node=0, cpu="12", memory="64Gi")
    assert (given.cpu, given.memory, given.shm_size) == ("12", "64Gi", "8Gi")
