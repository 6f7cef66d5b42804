"""A data set and a model store behind S3 over HTTP, and runs of `retrain` that can be killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from object_store import serving_s3
from tiny_sets import TinySet, write_tiny_set

REPOSITORY = Path(__file__).parents[2]
BUCKET = "bucket"
MIN_NEW_ANNOTATIONS = 4

# Eighty steps of a few milliseconds: masks of the diamonds in `tiny_sets` at an IoU above 0.7.
SPEC: Mapping[str, Any] = {
    "device": "cpu",
    "dataset": {
        "crop_size": 32,
        "window_rate": [1.3, 1.8],
        "box_jitter": 0.2,
        "min_obj_size": 0,
        "num_workers_per_gpu": 0,
    },
    "model": {"arch": "vit-hybrid-small/8", "mask_head": "pyramid"},
    "train": {
        "batch_size": 8,
        "max_steps": 80,
        "lr": 1e-3,
        "loss_mil_step": 10,
        "loss_crf_step": 5,
        "crf_num_iter": 3,
        "test_margin_rate": [1.2, 1.2],
        "mask_thres": [0.45],
        "validation_interval": 1000,
        "checkpoint_interval": 1000,
    },
    "wandb": {"enable": False},
}

# Ends a step as a node that is lost does: when its work is done, or just before its one write to
# the model store.
HOOK = """\
import os, signal, sys
step, where = os.environ.get("KILL_STEP"), os.environ.get("KILL_WHERE", "")
command = sys.orig_argv
if step and f"--function_to_execute {step}" in " ".join(command) and where in " ".join(command):
    from mal.registry import model_store
    from mal.steps import Step
    exit_step = Step.__exit__
    def die(*_arguments):
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    def dying_exit(step, kind, error, traceback):
        exit_step(step, kind, error, traceback)
        if error is None:
            die()
    Step.__exit__ = dying_exit
    model_store.ModelStore.write = die
"""


@dataclass(frozen=True)
class Run:
    """A finished, or killed, run: its exit code, what it said, and the pointer it left."""

    exit_code: int
    said: str
    pointer: bytes | None
    folder: Path

    @property
    def steps(self) -> list[str]:
        """What was started, in order."""
        return re.findall(r"^step \d+: (\S+)", self.said, re.MULTILINE)

    @property
    def champion(self) -> str:
        """Version that the pointer names."""
        champion = self.pointer and json.loads(self.pointer)["champion"]
        return str(champion["version"]) if champion else ""


@dataclass
class World:
    """A bucket with a training and a validation set, and an empty model store.

    Attributes:
        client: A boto3 client of the store.
        folder: For what is local.
        environment: What leads a process to the store.
        train: The whole training set; the bucket has what was published of it.
    """

    client: Any
    folder: Path
    environment: Mapping[str, str]
    train: TinySet
    spec: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(SPEC)))

    def publish(self, num_boxes: int, *, is_poisoned: bool = False) -> None:
        """Put the first boxes of the set into the bucket; poisoned, each is its whole picture."""
        document = self.train.document()
        document["annotations"] = document["annotations"][:num_boxes]
        if is_poisoned:
            for box in document["annotations"]:
                box["bbox"] = [0, 0, 48, 48]
        body = json.dumps(document).encode()
        self.client.put_object(Bucket=BUCKET, Key="train/boxes.json", Body=body)

    def pointer(self) -> bytes | None:
        """Return the pointer's bytes; None where there is none."""
        keys = [
            entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
        ]
        if "store/champion.json" not in keys:
            return None
        body: bytes = self.client.get_object(Bucket=BUCKET, Key="store/champion.json")[
            "Body"
        ].read()
        return body

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the record of every whole version by its name."""
        keys = [
            entry["Key"]
            for entry in self.client.list_objects_v2(Bucket=BUCKET, Prefix="store/versions/")[
                "Contents"
            ]
            if entry["Key"].endswith("/version.json")
        ]
        bodies = [self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys]
        return {record["version"]: record for record in map(json.loads, bodies)}

    def retrain(self, *, kill_step: str = "", kill_where: str = "", **changes: str) -> Run:
        """Run the pipeline as a person does, without a search unless `changes` ask for one.

        Args:
            kill_step: Component that dies.
            kill_where: In the command of that component, where it is used twice.
            changes: Parameters of the pipeline.
        """
        runs = self.folder / "runs"
        parameters = {
            "train_images": f"s3://{BUCKET}/train/images/",
            "train_annotations": f"s3://{BUCKET}/train/boxes.json",
            "val_images": f"s3://{BUCKET}/val/images/",
            "val_annotations": f"s3://{BUCKET}/val/boxes.json",
            "store": f"s3://{BUCKET}/store",
            "spec": yaml.safe_dump(self.spec),
            "min_new_annotations": str(MIN_NEW_ANNOTATIONS),
            "quiet_period_s": "0",
            "miou_margin": "0.03",
            "category_margin": "0.08",
            "automl_policy": "off",
            **changes,
        }
        pairs = [part for key, value in parameters.items() for part in ("-p", f"{key}={value}")]
        if kill_step:  # it must run to die, also where an earlier run has finished it
            pairs.append("--fresh")
        process = subprocess.run(
            [sys.executable, "-m", "pipelines", "run", "retrain", "--output", str(runs), *pairs],
            cwd=REPOSITORY,
            env={**self.environment, "KILL_STEP": kill_step, "KILL_WHERE": kill_where},
            capture_output=True,
            text=True,
            check=False,
        )
        said = process.stdout + process.stderr
        newest = max(runs.glob("retrain-*"), key=lambda path: path.name)
        return Run(process.returncode, said, self.pointer(), newest)


@contextmanager
def retraining_world(folder: Path) -> Iterator[World]:
    """Serve a bucket with versioning, and put the sets' images and the validation part into it."""
    import boto3

    with serving_s3() as address:
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        places = {"AWS_CONFIG_FILE": "no-config", "AWS_SHARED_CREDENTIALS_FILE": "no-credentials"}
        store = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MAL_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")]),
            **{name: str(folder / file) for name, file in places.items()},
        }
        client = boto3.client(
            "s3",
            endpoint_url=store["AWS_ENDPOINT_URL"],
            aws_access_key_id="tester",
            aws_secret_access_key="tester-secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        train = write_tiny_set(folder / "train", num_images=12)
        val = write_tiny_set(folder / "val", num_images=6, seed=5)
        for name, data in (("train", train), ("val", val)):
            for path in data.images.iterdir():
                client.upload_file(str(path), BUCKET, f"{name}/images/{path.name}")
        client.upload_file(str(val.annotations), BUCKET, "val/boxes.json")
        yield World(client, folder, {**os.environ, **store}, train)
