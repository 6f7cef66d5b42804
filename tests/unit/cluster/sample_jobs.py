"""Jobs for the tests: a small one to change, one that uses every setting, and any at all."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

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

SMALL = JobSettings(
    name="mal-train-7f3a",
    namespace="team",
    image="registry.example.com/mal/train:1",
    outputs_uri="s3://bucket/run",
)

FULL = JobSettings(
    name="mal-train-7f3a",
    namespace="team",
    image="registry.example.com/mal/train:1",
    outputs_uri="s3://bucket/run",
    spec="train:\n  lr: 1e-4\n",
    overrides=("train.num_epochs=2",),
    num_nodes=3,
    restarts=5,
    image_pull_policy="Always",
    master_port=29400,
    resources=Resources(gpus_per_node=4, cpu="16", memory="64Gi", shm_size="16Gi"),
    placement=Placement(
        node_selector={"gpu": "a100"},
        tolerations=(Toleration(key="gpu", operator="Equal", value="yes", effect="NoSchedule"),),
        queue_name="gold",
        priority_class="high",
    ),
    storage=Storage(
        claims=(VolumeClaim(claim="images", mount_path="/data"),),
        cache_size="20Gi",
        cache_claim="cache",
        tmp_size="5Gi",
    ),
    environment=Environment(
        values={"NCCL_DEBUG": "INFO"},
        secrets={"AWS_SECRET_ACCESS_KEY": SecretKey(secret="s3", key="secret")},
        config_map="mal-config",
    ),
    security=Security(image_pull_secrets=("registry",)),
    lifetime=Lifetime(restart_policy="OnFailure", backoff_limit=2, clean_pod_policy="All"),
    labels={"pipelines.kubeflow.org/run": "r1"},
    annotations={"example.com/ticket": "any text: 12"},
    owner=Owner(name="step-pod", uid="1-2-3"),
    training_runtime=TrainingRuntime(name="mal-torch", kind="TrainingRuntime"),
)

# The same without what only a training runtime can say.
FULL_TRAINJOB = FULL.replace(
    image_pull_policy="",
    master_port=0,
    placement=FULL.placement.model_copy(update={"priority_class": ""}),
    lifetime=Lifetime(active_deadline_s=60),
)


def small(**changes: Any) -> JobSettings:
    return SMALL.replace(**changes)


_values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="@\0"), max_size=20)

# Names of these letters do not sound secret.
jobs = st.builds(
    small,
    name=st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True),
    num_nodes=st.integers(1, 64),
    spec=st.sampled_from(["", "recipe:demo", "train:\n  lr: 1e-4 # $(RANK) $$\n"]),
    resources=st.builds(
        Resources,
        gpus_per_node=st.integers(1, 16),
        cpu=st.sampled_from(["500m", "1", "7.5", "96"]),
        memory=st.sampled_from(["64Gi", "100G"]),
    ),
    environment=st.builds(
        Environment, values=st.dictionaries(st.from_regex(r"X_[B-J]{1,8}", fullmatch=True), _values)
    ),
    security=st.builds(
        Security,
        run_as_user=st.integers(1, 2**31 - 1),
        read_only_root=st.booleans(),
        istio_sidecar=st.booleans(),
    ),
)
