"""A search on Katib, against its controller's double: the launcher's side, and what trials get."""

from __future__ import annotations

import functools
import itertools
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl
from stand_in import NAMESPACE, Fault, StandIn
from tiny_sets import HYBRID, write_tiny_set

from cluster import katib_searching
from cluster.katib_searching import SEARCH, TRIAL_IMAGE, search
from cluster.launching import IMAGE, JOB, Launch
from cluster.real_training import CREDENTIALS, SPEC, prepare, upload
from mal.cluster import WaitLimits
from mal.errors import ClusterError
from mal.model.checkpoint import read_checkpoint

TESTS = Path(__file__).parents[2]


@pytest.fixture
def katib(cluster: StandIn) -> StandIn:
    cluster.add_image(IMAGE, TRIAL_IMAGE)
    return cluster


def metric_of(lr: float) -> float:
    return 0.9 - abs(math.log10(lr / 1e-3)) / 10


def test_the_best_of_all_trials_is_found_by_what_they_print(katib: StandIn) -> None:
    lines: list[str] = []
    finished = search(lines.append)
    assert len(finished.trials) == 5
    assert {trial.end for trial in finished.trials} == {"Succeeded"}
    for trial in finished.trials:
        assert trial.metric == pytest.approx(metric_of(float(trial.values["train.lr"])), abs=1e-3)
    assert finished.best.metric == max(trial.metric or 0 for trial in finished.trials)
    assert f"best mIoU={finished.best.metric:.4f} of {finished.best.name}" in lines[-1]
    assert any("running of 5 trials" in line for line in lines)


def test_every_pod_of_a_trial_gets_the_same_words_whatever_the_webhook_does(
    katib: StandIn, gate: Path
) -> None:
    katib.add_image(IMAGE, TRIAL_IMAGE)

    def printed() -> dict[str, list[str]]:
        texts = {
            name: [text for _, text in log.read(since="", tail=None, follow=False)]
            for (_, name), log in katib.api.logs.items()
        }
        return {
            name: [line for line in lines if line.startswith("argument <")]
            for name, lines in texts.items()
        }

    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search, lambda _: None, num_trials=1)
        katib.wait_until(
            lambda: [len(words) for words in printed().values()] == [6, 6], "both pods print"
        )
        gate.touch()
        best = searching.result().best
    assert set(printed()) == {f"{best.name}-master-0", f"{best.name}-worker-0"}
    for words in printed().values():
        assert words == [
            "argument <train>",
            "argument <dataset.window_rate=[1.3, 2.2]>",
            f"argument <train.lr={best.values['train.lr']}>",
            f"argument <train.crf_view={best.values['train.crf_view']}>",
            f"argument <results_dir={JOB.outputs_uri}/trials/{best.name}>",
            f"argument <train.results_dir={JOB.outputs_uri}/trials/{best.name}>",
        ]


def test_faults_of_the_api_server_are_waited_out(katib: StandIn) -> None:
    for fault in (
        Fault("/experiments", "POST", status=503),
        Fault("/experiments", "GET", status=500, times=2, is_watch=False),
        Fault("/experiments", "GET", times=2, is_watch=True),
        Fault("/trials", "GET", status=429, headers={"Retry-After": "1"}),
    ):
        katib.api.faults.add(fault)
    assert search(lambda _: None, num_trials=2).best.metric
    assert len(katib.objects("experiments")) == 1


def test_a_failed_trial_is_logged_and_the_others_go_on(katib: StandIn) -> None:
    katib.add_image(IMAGE, f'[ -e "$ONCE" ] || {{ : > "$ONCE"; exit 3; }}\n{TRIAL_IMAGE}')
    katib.kubelet.variables["ONCE"] = str(katib._folder / "once")
    lines: list[str] = []
    finished = search(lines.append)
    assert [trial.end for trial in finished.trials].count("Failed") == 1
    assert any("1 failed" in line for line in lines)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo broken; exit 3", "master-0 ended with exit code 3. The lines below may say why."),
        ("echo nothing", "Katib read no mIoU: label the namespace katib.kubeflow.org/metrics-c"),
    ],
    ids=["all trials fail", "nothing is printed"],
)
def test_a_search_without_metrics_says_why(cluster: StandIn, script: str, reason: str) -> None:
    cluster.add_image(IMAGE, script)
    with pytest.raises(ClusterError, match=JOB.name) as failed:
        search(lambda _: None, num_trials=2)
    assert reason in str(failed.value)
    assert ("\nbroken" in str(failed.value)) == ("broken" in script)


def test_a_namespace_without_the_label_is_named_at_once(katib: StandIn) -> None:
    katib.katib.is_injecting = False
    expected = "kubectl label namespace team katib.kubeflow.org/metrics-collector-injection=enabled"
    with pytest.raises(ClusterError, match=f"Katib refuses a search .*{expected}"):
        search(lambda _: None, num_trials=2)


def test_a_trial_out_of_memory_is_read_from_its_pod(
    katib: StandIn, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    katib.add_image(IMAGE, TRIAL_IMAGE)
    started = Launch(search, num_trials=2)
    katib.wait_until(lambda: len(katib.kubelet.runs) >= 2, "a trial runs")
    name = next(name for name in katib.kubelet.runs if name.endswith("-master-0"))
    katib.kubelet.kill(name, is_out_of_memory=True)
    started.wait_for_line("1 failed")
    gate.touch()
    started.result()
    assert f"{name} was OOMKilled (limit 4Gi, exit code 137). Lower train.batch" in started.text


def test_a_trial_whose_pod_waits_is_explained_and_not_waited_for_without_end(
    katib: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        katib_searching, "LIMITS", WaitLimits(start_timeout_s=2, poll_interval_s=0.5)
    )
    katib.kubelet.unschedulable = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    lines: list[str] = []
    with pytest.raises(ClusterError, match=r"was not started within 2 s: .*-0 cannot be schedu"):
        search(lines.append)
    assert katib.objects("experiments") == []


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("Pending", "no trial exists yet: mal-7f3a9c12-ab12-tpe is Pending"),
        ("Running", "no trial exists yet: .*-tpe, which suggests values, runs.*port 6789: apply"),
    ],
)
def test_a_search_that_does_not_start_names_the_pod_that_suggests_values(
    katib: StandIn, monkeypatch: pytest.MonkeyPatch, phase: str, expected: str
) -> None:
    monkeypatch.setattr(
        katib_searching, "LIMITS", WaitLimits(start_timeout_s=2, poll_interval_s=0.5)
    )
    katib.katib.suggestion_phase = phase
    katib.katib.is_shut_in = True
    with pytest.raises(ClusterError, match=expected):
        search(lambda _: None)


def test_a_cluster_without_katib_names_what_to_install(katib: StandIn) -> None:
    katib.api.served.remove("kubeflow.org/v1beta1/experiments")
    with pytest.raises(ClusterError, match=r"Katib 0\.19 or later"):
        search(lambda _: None)


def test_a_controller_that_is_down_is_not_waited_for_without_end(
    katib: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    katib.katib.is_running = False
    limits = WaitLimits(start_timeout_s=1, poll_interval_s=0.5)
    monkeypatch.setattr(katib_searching, "LIMITS", limits)
    with pytest.raises(ClusterError, match="no trial exists yet, and Katib has not read"):
        search(lambda _: None)
    assert katib.objects("experiments") == []


def test_a_retried_step_goes_on_with_the_experiment_of_its_earlier_try(
    katib: StandIn, gate: Path
) -> None:
    katib.add_image(IMAGE, TRIAL_IMAGE)
    first = threading.Thread(target=search, args=(lambda _: None,), daemon=True)
    first.start()
    katib.wait_until(lambda: bool(katib.kubelet.runs), "a trial runs")
    lines: list[str] = []
    gate.touch()
    finished = search(lines.append)
    first.join(60)
    assert "exists already" in lines[0]
    assert len(katib.objects("experiments")) == 1
    assert len(finished.trials) == SEARCH.num_trials


def test_a_cancelled_step_deletes_experiment_trials_and_pods(katib: StandIn, gate: Path) -> None:
    katib.add_image(IMAGE, TRIAL_IMAGE)

    def is_gone(plural: str) -> bool:
        return katib.objects(plural) == []

    path = [str(TESTS / "integration"), str(TESTS / "support"), str(TESTS.parent)]
    with subprocess.Popen(
        [sys.executable, "-m", "cluster.katib_searching"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as step:
        katib.wait_until(lambda: len(katib.kubelet.runs) >= 2, "trials run", timeout_s=60)
        step.terminate()
        assert step.wait(20) == 143
    assert katib.objects("experiments") == []
    for plural in ("trials", "pytorchjobs"):
        katib.wait_until(functools.partial(is_gone, plural), f"the {plural} go")
    katib.wait_until(lambda: katib.pod_names() == [], "the pods go")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_step_searches_with_real_trainings_in_pods_and_takes_the_best_model(
    cluster: StandIn, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mal.kfp.components.snapshot_dataset import snapshot_dataset
    from mal.kfp.components.tune import tune

    prepare(cluster, s3)
    upload(s3, write_tiny_set(tmp_path / "set", num_images=4))
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.meta.endpoint_url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    artifacts = {
        name: kind(uri=str(tmp_path / name))
        for name, kind in {
            "model": dsl.Model, "metrics": dsl.Metrics, "leaderboard": dsl.Markdown,
            "report": dsl.HTML,
        }.items()
    }  # fmt: skip
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    images, boxes = "s3://bucket/set/images.tar.gz", "s3://bucket/set/boxes.json"
    snapshot_dataset.python_func(
        dataset=dataset, summary=dsl.Markdown(uri=str(tmp_path / "summary")),
        train_images=images, train_annotations=boxes, val_images=images, val_annotations=boxes,
    )  # fmt: skip
    values, metric, spec = tune.python_func(
        dataset=dataset,
        **artifacts,
        spec=SPEC,
        overrides=list(HYBRID),
        backend="katib",
        ranges=["train.lr=1e-5:1e-2:log"],
        trials=3,
        parallel=2,
        image=IMAGE,
        namespace=NAMESPACE,
        outputs_uri="s3://bucket/search",
        job={"resources": {"gpus_per_node": 0, "cpu": "1", "memory": "4Gi", "shm_size": "1Gi"}},
    )
    trials = cluster.objects("trials")
    observed = [t["status"]["observation"]["metrics"][0]["max"] for t in trials]
    assert metric == max(map(float, observed))
    assert yaml.safe_load(spec)["train"]["lr"] == values["train.lr"]
    position = read_checkpoint(tmp_path / "model" / "mal_model_latest.pth")["mal_position"]
    assert position["best_figure"] == pytest.approx(metric, abs=1e-4)
    lines = (tmp_path / "leaderboard").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| rank |"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    assert len(rows) == 2 + 3
    header, _, *shown = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert {int(row[header.index("epochs")]) for row in shown} == {2}
    assert all(float(row[header.index(r"duration\_s")]) > 0 for row in shown)
    assert artifacts["model"].metadata["val_mIoU"] == metric
