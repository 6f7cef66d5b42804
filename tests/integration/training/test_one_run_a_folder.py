"""A results folder belongs to one run: whatever is tried, its files name what its weights saw."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_sets import HYBRID, TinySet, training_overrides, write_tiny_set

from mal.artifacts import sha256_of_file
from mal.cli import main
from mal.runtime import set_up_logging
from mal.storage import objects

SLOW_RUN = ("train.num_epochs=5000", "train.checkpoint_interval=2")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    set_up_logging()
    monkeypatch.setattr(logging.getLogger("mal"), "propagate", True)


@pytest.fixture
def data(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


@pytest.fixture
def other(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "other", num_images=2, seed=7)


def arguments(data: TinySet, folder: Path | str, *overrides: str) -> list[str]:
    return ["train", *HYBRID, *training_overrides(data, folder), "train.max_steps=2", *overrides]


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What the four files of a folder say of the run.

    Attributes:
        annotations: sha256, by the manifest and `run.json`.
        spec: Of the checkpoint.
        run_id: Of the run.
    """

    annotations: str
    spec: Mapping[str, Any]
    run_id: str


def lineage_of(folder: Path) -> Lineage:
    """Read manifest, spec, run and checkpoint, and check that they agree."""
    manifest, run = (
        json.loads((folder / name).read_bytes()) for name in ("manifest.json", "run.json")
    )
    written = yaml.safe_load((folder / "experiment.yaml").read_text())
    spec = torch.load(folder / "mal_model_latest.pth", weights_only=True)["mal_spec"]
    own = ("results_dir", "num_epochs", "max_steps", "overwrite")
    for section in ("dataset", "model", "train"):
        mine, theirs = (
            {key: value for key, value in content[section].items() if key not in own}
            for content in (written, spec)
        )
        assert mine == theirs
    assert manifest["inputs"] == run["inputs"]
    assert manifest["run"]["run_id"] == run["run_id"]
    for key, facts in manifest["inputs"].items():
        section, name = key.split(".")
        assert facts["uri"] == spec[section][name]
    for key, value in run["spec"].items():
        section, _, name = key.partition(".")
        assert value in (spec[section][name], -1)
    for name, facts in manifest["outputs"].items():
        assert sha256_of_file(folder / name) == facts["sha256"]
    return Lineage(manifest["inputs"]["dataset.train_ann_path"]["sha256"], spec, run["run_id"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "status.json"
    }


def with_changed_box(data: TinySet) -> None:
    document = data.document()
    document["annotations"][0]["bbox"][0] += 1
    data.annotations.write_text(json.dumps(document))


def test_the_same_command_goes_on_and_a_longer_one_prolongs(data: TinySet, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    first = lineage_of(folder)
    assert first.annotations == sha256_of_file(data.annotations)
    assert main(arguments(data, folder)) == 0
    assert lineage_of(folder) == first
    machine = ("train.num_gpus=1", "dataset.num_workers_per_gpu=1", "train.compile=false")
    assert main(arguments(data, folder, "train.max_steps=3", *machine)) == 0
    prolonged = lineage_of(folder)
    assert (prolonged.run_id, prolonged.annotations) == (first.run_id, first.annotations)
    assert prolonged.spec["train"]["max_steps"] == 3


@pytest.mark.parametrize("is_in_place", [False, True], ids=["another set", "the file has changed"])
def test_other_data_are_refused_and_named(
    data: TinySet,
    other: TinySet,
    tmp_path: Path,
    is_in_place: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    before, first = files_of(folder), lineage_of(folder)
    if is_in_place:
        with_changed_box(data)
    capsys.readouterr()
    assert main(arguments(data if is_in_place else other, folder)) == 2
    told = capsys.readouterr().err
    assert (
        f"dataset.train_ann_path: {data.annotations} (sha256 {first.annotations[:12]}) ->" in told
    )
    assert "results_dir=" in told
    assert "train.overwrite=true" in told
    assert files_of(folder) == before
    assert lineage_of(folder) == first


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lr=5e-4", "train.lr: 0.001 -> 0.0005"),
        ("train.seed=9", "train.seed: 1234 -> 9"),
        ("train.batch_size=1", "train.batch_size: 2 -> 1"),
        ("dataset.crop_size=64", "dataset.crop_size: 32 -> 64"),
    ],
)
def test_another_spec_is_refused_key_by_key(
    data: TinySet, tmp_path: Path, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    first = lineage_of(folder)
    capsys.readouterr()
    assert main(arguments(data, folder, override, "train.max_steps=9")) == 2
    assert told in capsys.readouterr().err
    assert lineage_of(folder) == first


def test_an_image_that_nobody_annotated_makes_no_other_run(data: TinySet, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    shutil.copy(data.images / "picture 0.png", data.images / "new.png")
    assert main(arguments(data, folder, "train.max_steps=3")) == 0
    lineage_of(folder)


def test_overwriting_starts_anew_and_leaves_nothing_of_the_other_run(
    data: TinySet, other: TinySet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder, "train.max_steps=4")) == 0
    (folder / "notes.txt").write_text("a person's")
    first = lineage_of(folder)
    assert main(arguments(other, folder, "train.overwrite=true")) == 0
    second = lineage_of(folder)
    assert second.annotations == sha256_of_file(other.annotations)
    assert second.run_id != first.run_id
    assert second.spec["train"]["overwrite"] is False
    assert not list(folder.glob("*step_00004*"))
    assert (folder / "notes.txt").exists()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2]
    assert main(arguments(other, folder, "train.overwrite=true", "train.max_steps=3")) == 0
    assert lineage_of(folder).run_id == second.run_id


@pytest.mark.parametrize(
    "mistake",
    ["train.pretrained_model_path=absent.pth", "dataset.min_obj_size=1e9", "device=cuda"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="device=cuda would be no mistake")
def test_a_mistake_is_found_before_anything_is_overwritten(
    data: TinySet, other: TinySet, tmp_path: Path, mistake: str
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    before = files_of(folder)
    assert main(arguments(other, folder, "train.overwrite=true", mistake)) == 2
    assert files_of(folder) == before


def test_what_left_no_checkpoint_keeps_nobody_out(
    data: TinySet, other: TinySet, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder, "train.pretrained_model_path=absent.pth")) == 2
    assert (folder / "run.json").exists()
    assert main(arguments(other, folder)) == 0
    assert lineage_of(folder).annotations == sha256_of_file(other.annotations)


def test_a_drawn_seed_goes_on_by_minus_one_and_by_the_written_spec(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder, "train.seed=-1")) == 0
    seed = lineage_of(folder).spec["train"]["seed"]
    assert main(arguments(data, folder, "train.seed=-1", "train.max_steps=3")) == 0
    spec = str(folder / "experiment.yaml")
    assert main(["train", "-e", spec, "train.max_steps=4"]) == 0
    assert lineage_of(folder).spec["train"]["seed"] == seed
    assert main(arguments(data, folder, f"train.seed={seed + 1}")) == 2
    assert "train.seed" in capsys.readouterr().err


def test_a_folder_of_the_first_release_goes_on_and_is_guarded_too(
    data: TinySet, other: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    (folder / "run.json").unlink()
    assert main(arguments(other, folder)) == 2
    assert "dataset.train_ann_path" in capsys.readouterr().err
    assert main(arguments(data, folder, "train.lr=1")) == 2
    assert "train.lr: 0.001 -> 1.0" in capsys.readouterr().err
    assert main(arguments(data, folder, "train.max_steps=3")) == 0
    lineage_of(folder)


def test_a_run_that_starts_from_another_folders_checkpoint_is_a_run_of_its_own(
    data: TinySet, other: TinySet, tmp_path: Path
) -> None:
    assert main(arguments(data, tmp_path / "first")) == 0
    given = tmp_path / "first" / "mal_model_latest.pth"
    resume = f"train.resume_training_checkpoint_path={given}"
    for num_steps in (3, 4):
        steps = f"train.max_steps={num_steps}"
        assert main(arguments(other, tmp_path / "second", resume, steps)) == 0
        assert lineage_of(tmp_path / "second").annotations == sha256_of_file(other.annotations)
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_bytes())
    assert manifest["run"]["starts_from"]["sha256"] == sha256_of_file(given)


def test_another_version_of_mal_goes_on_and_the_manifest_names_both(
    data: TinySet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    run = json.loads((folder / "run.json").read_bytes())
    run["code"][0]["mal"] = "0.0.9"
    (folder / "run.json").write_text(json.dumps(run))
    assert main(arguments(data, folder, "train.max_steps=3")) == 0
    assert "a run that was trained with mal 0.0.9" in caplog.text
    code = json.loads((folder / "manifest.json").read_bytes())["run"]["code"]
    assert [versions["mal"] == "0.0.9" for versions in code] == [True, False]


@contextlib.contextmanager
def serving(port_file: Path) -> Iterator[str]:
    """Serve a store of its own, in a process of its own; yields its address."""
    program = (
        "import pathlib, time; from moto.server import ThreadedMotoServer as S;"
        "s = S('127.0.0.1', port=0); s.start();"
        f"pathlib.Path({str(port_file)!r}).write_text(str(s.get_host_and_port()[1]) + '\\n');"
        "time.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + 120
        while not (port_file.exists() and port_file.read_text().endswith("\n")):
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Two real servers, each with an empty bucket `bucket`."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path / "one") as one, serving(tmp_path / "two") as two:
        for address in (one, two):
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        yield one, two
    objects._client_of_process.cache_clear()


def use_store(monkeypatch: pytest.MonkeyPatch, address: str) -> Any:
    """Let mal speak to a store from now on; returns a client of it."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    objects._client_of_process.cache_clear()
    return boto3.client("s3")


def fetched(client: Any, folder: Path) -> Path:
    """Fetch what a store has of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    for entry in client.list_objects_v2(Bucket="bucket")["Contents"]:
        path = folder / entry["Key"].removeprefix("run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("bucket", entry["Key"], str(path))
    return folder


def test_a_deleted_remote_folder_and_another_server_hold_nothing_of_an_earlier_run(
    data: TinySet,
    other: TinySet,
    tmp_path: Path,
    stores: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, here = "s3://bucket/run", tmp_path / "fetched"
    client = use_store(monkeypatch, stores[0])
    assert main(arguments(data, uri)) == 0
    first = lineage_of(fetched(client, here))
    assert first.annotations == sha256_of_file(data.annotations)

    second_client = use_store(monkeypatch, stores[1])
    assert main(arguments(other, uri)) == 0
    second = lineage_of(fetched(second_client, here))
    assert second.annotations == sha256_of_file(other.annotations)

    client = use_store(monkeypatch, stores[0])
    assert main(arguments(other, uri)) == 2
    assert lineage_of(fetched(client, here)) == first
    for entry in client.list_objects_v2(Bucket="bucket")["Contents"]:
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    assert main(arguments(other, uri)) == 0
    assert lineage_of(fetched(client, here)).annotations == sha256_of_file(other.annotations)

    assert main(arguments(data, uri, "train.overwrite=true")) == 0
    anew = lineage_of(fetched(client, here))
    assert anew.annotations == first.annotations
    assert anew.run_id != first.run_id
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket="bucket")["Contents"]}
    assert not {key for key in keys if "lock" in key}


def start(command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mal", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_frees_its_folder_and_still_owns_it(
    data: TinySet, other: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    # Loader processes outlive the kill for a while.
    long = (*SLOW_RUN, "train.max_steps=0", "dataset.num_workers_per_gpu=2")
    process = start(arguments(data, folder, *long))
    wait_until((folder / "mal_model_latest.pth").exists, process)
    second = start(arguments(other, folder))
    _, told = second.communicate(timeout=240)
    assert second.returncode == 2, told
    assert f"is held by process {process.pid} on " in told
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(arguments(other, folder)) == 2
    assert "whose run differs in" in capsys.readouterr().err
    assert main(arguments(data, folder, "train.max_steps=1")) == 0
    assert lineage_of(folder).annotations == sha256_of_file(data.annotations)


@pytest.mark.slow
def test_of_two_at_the_same_time_one_trains(data: TinySet, other: TinySet, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    long = ("train.max_steps=60",)
    both = [start(arguments(each, folder, *long)) for each in (data, other)]
    told = [process.communicate(timeout=500)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    trained = (data, other)[[process.returncode for process in both].index(0)]
    assert lineage_of(folder).annotations == sha256_of_file(trained.annotations)


def test_a_service_that_names_the_runs_own_checkpoint_may_leave_its_first_weights_out(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path / "first")) == 0
    weights = tmp_path / "first" / "mal_model_best.pth"
    folder = tmp_path / "run"
    assert main(arguments(data, folder, f"train.pretrained_model_path={weights}")) == 0
    more = "train.max_steps=3"
    assert main(arguments(data, folder, more)) == 2
    told = f"train.pretrained_model_path: {weights} (sha256 {sha256_of_file(weights)[:12]}) -> none"
    assert told in capsys.readouterr().err
    own = f"train.resume_training_checkpoint_path={folder / 'mal_model_latest.pth'}"
    assert main(arguments(data, folder, more, own)) == 0
    assert lineage_of(folder).spec["train"]["pretrained_model_path"] == str(weights)


def test_another_action_does_not_take_a_trainings_manifest_away(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(arguments(data, folder)) == 0
    first = lineage_of(folder)
    spec = str(folder / "experiment.yaml")
    checkpoint = f"evaluate.checkpoint={folder / 'mal_model_latest.pth'}"
    val = [f"dataset.val_ann_path={data.annotations}", f"dataset.val_img_dir={data.images}"]
    results = f"evaluate.results_dir={folder}"
    assert main(["evaluate", "-e", spec, checkpoint, *val, results]) == 2
    assert "evaluate.results_dir must not be the results folder" in capsys.readouterr().err
    assert lineage_of(folder) == first
