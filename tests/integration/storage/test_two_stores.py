"""Real stores, as KFP 2.17 installs them: which one a bucket is in, and what an outage costs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from seaweedfs import SeaweedFs, serving_seaweedfs
from tiny_sets import HYBRID, training_overrides, write_tiny_set

WAIT_S = 300
ARTIFACTS = "minio://mlpipeline/v2/artifacts/run"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SeaweedFs, SeaweedFs]]:
    """The user's own store and that of Kubeflow Pipelines; each refuses the keys of the other."""
    folder = tmp_path_factory.mktemp("stores")
    with (
        serving_seaweedfs(folder / "own", "own", "own-secret") as own,
        serving_seaweedfs(folder / "kfp", "kfp", "kfp-secret") as kfp,
    ):
        own.client().create_bucket(Bucket="data")
        kfp.client().create_bucket(Bucket="mlpipeline")
        data = write_tiny_set(folder / "set", num_images=2)
        for path in (data.annotations, *sorted(data.images.iterdir())):
            key = "train.json" if path == data.annotations else f"images/{path.name}"
            own.client().upload_file(str(path), "data", key)
        yield own, kfp


def environment_of_a_pod(own: SeaweedFs, kfp: SeaweedFs) -> dict[str, str]:
    """The variables of a training job's pod; KFP's launcher would read AWS_* in a step."""
    providers = {
        "minio": {
            "default": {
                "endpoint": kfp.endpoint.removeprefix("http://"),
                "disableSSL": True,
                "credentials": {
                    "fromEnv": False,
                    "secretRef": {
                        "secretName": "mlpipeline-minio-artifact",
                        "accessKeyKey": "accesskey",
                        "secretKeyKey": "secretkey",
                    },
                },
            }
        }
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "MAL_S3_ENDPOINT_URL": own.endpoint,
        "MAL_S3_ACCESS_KEY_ID": "own",
        "MAL_S3_SECRET_ACCESS_KEY": "own-secret",
        "MAL_KFP_PROVIDERS": yaml.safe_dump(providers),
        "MAL_KFP_PIPELINE_ROOT": "minio://mlpipeline/v2/artifacts",
        "MAL_KFP_MLPIPELINE_MINIO_ARTIFACT__ACCESSKEY": "kfp",
        "MAL_KFP_MLPIPELINE_MINIO_ARTIFACT__SECRETKEY": "kfp-secret",
        "OMP_NUM_THREADS": "1",
    }


class Run:
    """`mal train` in a process of its own, whose log can be waited for."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mal", "train", *arguments],
            env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, num: int = 1) -> None:
        """Wait until `num` lines of the log have `text`."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: (
                    sum(text in line for line in self.lines) >= num or not self._reader.is_alive()
                ),
                WAIT_S,
            )
            assert found, self.lines[-20:]
            assert sum(text in line for line in self.lines) >= num, self.lines[-20:]

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code


def overrides(folder: Path, *others: str) -> list[str]:
    data = write_tiny_set(folder / "unused", num_images=1)
    return [
        *HYBRID, *training_overrides(data, ARTIFACTS),
        f"train.results_dir={ARTIFACTS}/{folder.name}/model",
        "dataset.train_ann_path=s3://data/train.json", "dataset.train_img_dir=s3://data/images",
        "dataset.val_ann_path=", "dataset.val_img_dir=", "wandb.enable=false", *others,
    ]  # fmt: skip


def results_of(kfp: SeaweedFs, folder: Path) -> dict[str, int]:
    prefix = f"v2/artifacts/run/{folder.name}/model/"
    listed = kfp.client().list_objects_v2(Bucket="mlpipeline", Prefix=prefix)
    return {
        entry["Key"].removeprefix(prefix): entry["Size"] for entry in listed.get("Contents", ())
    }


def content_of(kfp: SeaweedFs, folder: Path, name: str) -> bytes:
    key = f"v2/artifacts/run/{folder.name}/model/{name}"
    body: Any = kfp.client().get_object(Bucket="mlpipeline", Key=key)["Body"]
    return bytes(body.read())


def statuses(kfp: SeaweedFs, folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content_of(kfp, folder, "status.json").splitlines()]


def step_of(kfp: SeaweedFs, folder: Path) -> int:
    """Return the step of the latest checkpoint in the store."""
    import io

    import torch

    content = io.BytesIO(content_of(kfp, folder, "mal_model_latest.pth"))
    return int(torch.load(content, weights_only=True)["global_step"])


def test_data_in_ones_own_store_and_artifacts_in_kubeflows(
    stores: tuple[SeaweedFs, SeaweedFs], tmp_path: Path
) -> None:
    own, kfp = stores
    environment = environment_of_a_pod(own, kfp) | {"MAL_CACHE_DIR": str(tmp_path / "cache")}
    run = Run(overrides(tmp_path, "train.max_steps=2"), environment)
    assert run.wait() == 0, run.lines[-20:]
    assert {"mal_model_latest.pth", "status.json", "manifest.json"} <= set(
        results_of(kfp, tmp_path)
    )
    assert statuses(kfp, tmp_path)[-1]["status"] == "SUCCESS"
    assert [b["Name"] for b in own.client().list_buckets()["Buckets"]] == ["data", "ready"]


@pytest.mark.slow
def test_a_training_goes_on_while_the_store_is_away_and_catches_up(
    stores: tuple[SeaweedFs, SeaweedFs], tmp_path: Path
) -> None:
    own, kfp = stores
    environment = environment_of_a_pod(own, kfp) | {"MAL_CACHE_DIR": str(tmp_path / "cache")}
    run = Run(
        overrides(
            tmp_path, "train.max_steps=100000", "train.num_epochs=100000",
            "train.checkpoint_interval=100000", "storage.upload_interval_s=1",
        ),
        environment,
    )  # fmt: skip
    run.wait_for("steps of")
    while "mal_model_latest.pth" not in results_of(kfp, tmp_path):
        assert run.process.poll() is None, run.lines[-20:]
    before = step_of(kfp, tmp_path)
    kfp.stop()
    run.wait_for("The work goes on, and the upload is tried again")
    kfp.start()
    run.wait_for("is up to date again")
    assert step_of(kfp, tmp_path) > before
    run.process.terminate()
    assert run.wait() == 143, run.lines[-20:]
    written = {name for name in results_of(kfp, tmp_path) if name.startswith("mal_model_epoch")}
    assert len(written) <= 2, "interim checkpoints are replaced"
    messages = [status["message"] for status in statuses(kfp, tmp_path)]
    assert any(message.startswith("step ") for message in messages)


@pytest.mark.slow
def test_a_finished_model_waits_for_the_store(
    stores: tuple[SeaweedFs, SeaweedFs], tmp_path: Path
) -> None:
    own, kfp = stores
    environment = environment_of_a_pod(own, kfp) | {"MAL_CACHE_DIR": str(tmp_path / "cache")}
    run = Run(
        overrides(tmp_path, "train.max_steps=60", "train.num_epochs=60", "storage.retry_s=1"),
        environment,
    )
    run.wait_for("steps of")
    kfp.stop()
    run.wait_for("Trying again until it answers")
    kfp.start()
    assert run.wait() == 0, run.lines[-20:]
    assert step_of(kfp, tmp_path) == 60
    assert statuses(kfp, tmp_path)[-1]["status"] == "SUCCESS"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"MAL_KFP_MLPIPELINE_MINIO_ARTIFACT__SECRETKEY": "wrong"},
            "come from Secret mlpipeline-minio-artifact",
            id="KFP's keys",
        ),
        pytest.param(
            {"MAL_S3_SECRET_ACCESS_KEY": "wrong"},
            "come from MAL_S3_ACCESS_KEY_ID (Secret mal-s3)",
            id="the user's keys",
        ),
    ],
)
def test_a_refusal_names_the_setting_before_the_training(
    stores: tuple[SeaweedFs, SeaweedFs], tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    environment = environment_of_a_pod(*stores) | {"MAL_CACHE_DIR": str(tmp_path / "cache")}
    run = Run(overrides(tmp_path, "train.max_steps=2"), environment | changed)
    assert run.wait() == 2
    assert message in "\n".join(run.lines)
    assert "secret" not in "\n".join(run.lines).replace("mal-s3", "").casefold().replace(
        "secret mlpipeline", ""
    ).replace("(secret )", "")
    assert not any("steps of" in line for line in run.lines)
