"""The Experiment of a search, and what is read from Katib's objects."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from kubernetes_models import model_problems
from pod_security import restricted_violations

from mal.cluster import JobSettings, Owner, Placement, Resources
from mal.cluster.katib import (
    KatibParameter,
    KatibSearch,
    build_experiment,
    read_best,
    read_trial,
)

PARAMETERS = (
    KatibParameter("train.lr", "double", {"min": "1e-06", "max": "0.01"}),
    KatibParameter("model.arch", "categorical", {"list": ["a", "b"]}),
)
SEARCH = KatibSearch(algorithm="tpe", parameters=PARAMETERS, num_trials=6, num_parallel=9, seed=4)
JOB = JobSettings(
    name="mal-7f3a9c12-ab12",
    namespace="team",
    image="registry.example.com/mal/train:1",
    outputs_uri="s3://bucket/run",
    overrides=("dataset.window_rate=[1.3, 2.2]", "wandb.group='two words'"),
    num_nodes=2,
    resources=Resources(gpus_per_node=1),
    placement=Placement(queue_name="mal"),
    owner=Owner(name="step-pod", uid="u-1"),
)


def template_of(experiment: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = experiment["spec"]["trialTemplate"]
    return template


def test_the_experiment_asks_for_the_highest_miou_of_so_many_trials() -> None:
    spec = build_experiment(JOB, SEARCH)["spec"]
    assert (spec["objective"]["type"], spec["objective"]["objectiveMetricName"]) == (
        "maximize",
        "mIoU",
    )
    assert spec["maxTrialCount"] == 6
    assert spec["parallelTrialCount"] == 6, "Katib refuses more at a time than in all"
    assert spec["algorithm"]["algorithmSettings"] == [{"name": "random_state", "value": "4"}]
    assert spec["resumePolicy"] == "Never"


def test_every_placeholder_of_the_template_is_a_parameter_of_it_and_the_other_way_round() -> None:
    template = template_of(build_experiment(JOB, SEARCH))
    used = set(re.findall(r"\$\{trialParameters\.(\w+)\}", str(template["trialSpec"])))
    named = {each["name"]: each["reference"] for each in template["trialParameters"]}
    assert used == set(named)
    assert named == {
        "train_lr": "train_lr", "model_arch": "model_arch", "trial": "${trialSpec.Name}",
    }  # fmt: skip
    assert "." not in "".join(named)


def test_the_template_leaves_to_katib_what_katib_sets() -> None:
    experiment = build_experiment(JOB, SEARCH)
    job = template_of(experiment)["trialSpec"]
    assert not {"name", "namespace", "ownerReferences"} & job["metadata"].keys()
    assert experiment["metadata"]["ownerReferences"][0]["name"] == "step-pod"
    queue = "kueue.x-k8s.io/queue-name"
    assert job["metadata"]["labels"][queue] == "mal"
    assert queue not in experiment["metadata"]["labels"]


def test_the_pod_that_suggests_values_is_no_trainer_for_network_policies() -> None:
    """Katib copies the Experiment's labels to it, and mal-trainer-deny shuts trainers in."""
    experiment = build_experiment(JOB, SEARCH)
    component = "app.kubernetes.io/component"
    assert experiment["metadata"]["labels"][component] != "trainer"
    job = template_of(experiment)["trialSpec"]
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        assert replicas["template"]["metadata"]["labels"][component] == "trainer"


def test_pods_of_trials_stay_until_the_experiment_goes() -> None:
    assert template_of(build_experiment(JOB, SEARCH))["retain"] is True


@pytest.mark.parametrize("role", ["Master", "Worker"])
def test_the_command_of_every_pod_is_a_shells_with_each_word_quoted(role: str) -> None:
    job = template_of(build_experiment(JOB, SEARCH))["trialSpec"]
    (container,) = job["spec"]["pytorchReplicaSpecs"][role]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    assert shell == ["sh", "-c"]
    words = shlex.split(script)
    assert words[:2] == ["mal", "train"]
    assert {*JOB.overrides, "train.lr=${trialParameters.train_lr}"} <= set(words)
    assert words[-1] == "train.results_dir=s3://bucket/run/trials/${trialParameters.trial}"


def test_the_pods_of_trials_satisfy_the_restricted_standard() -> None:
    job = template_of(build_experiment(JOB, SEARCH))["trialSpec"]
    for replicas in job["spec"]["pytorchReplicaSpecs"].values():
        spec = replicas["template"]["spec"]
        assert model_problems(spec, "V1PodSpec") == []
        assert restricted_violations(spec) == []


def trial(condition: str, maximum: str | None) -> dict[str, Any]:
    metrics = [{"name": "mIoU", "latest": "0.3", "max": maximum, "min": "0.1"}] if maximum else []
    return {
        "metadata": {"name": "t-1"},
        "spec": {"parameterAssignments": [{"name": "train_lr", "value": "0.001"}]},
        "status": {
            "observation": {"metrics": metrics},
            "conditions": [{"type": condition, "status": "True", "message": "why"}],
        },
    }


@pytest.mark.parametrize(
    ("condition", "maximum", "metric", "end"),
    [
        ("Succeeded", "0.4312", 0.4312, "Succeeded"),
        ("Running", "0.2", 0.2, ""),
        ("MetricsUnavailable", None, None, "MetricsUnavailable"),
        ("Succeeded", "unavailable", None, "Succeeded"),
        ("Failed", "nan", None, "Failed"),
    ],
)
def test_a_trial_is_read_by_its_conditions_and_its_highest_metric(
    condition: str, maximum: str | None, metric: float | None, end: str
) -> None:
    found = read_trial(trial(condition, maximum), PARAMETERS)
    assert (found.metric, found.end) == (metric, end)
    assert found.values == {"train.lr": "0.001"}


def test_there_is_no_best_trial_before_one_is_measured() -> None:
    assert read_best({"status": {}}) == ("", None)
    best = {"bestTrialName": "t-1", "observation": {"metrics": [{"name": "mIoU", "max": "0.5"}]}}
    assert read_best({"status": {"currentOptimalTrial": best}}) == ("t-1", 0.5)
