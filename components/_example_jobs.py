"""Writes the examples in `manifests/examples`: one job for each operator.

`make compile` runs `python -m components._example_jobs`.
"""

import sys
from pathlib import Path

import yaml

from mal.cluster import (
    Environment,
    JobSettings,
    Placement,
    Resources,
    SecretKey,
    Storage,
    Toleration,
    TrainingRuntime,
    build_pytorchjob,
    build_trainjob,
)
from mal.storage.stores import CONFIG_MAP, S3_SECRET, SECRET_VARIABLES

from ._images import TRAIN_IMAGE

EXAMPLES_DIR = Path(__file__).resolve().parents[1] / "manifests" / "examples"

_NOTICE = """\
# Generated from components/_example_jobs.py by `make compile`; do not edit.
# Two nodes of eight GPUs each, with the accounts, the queue and the Secret of manifests/.
"""
_SPEC = """\
train:
  num_epochs: 10
  lr: 1.0e-6
  batch_size: 4
"""

EXAMPLE_JOB = JobSettings(
    name="mal-train-example",
    namespace="kubeflow-user-example-com",
    image=TRAIN_IMAGE,
    outputs_uri="s3://mal/runs/example",
    spec=_SPEC,
    overrides=(
        "dataset.train_img_dir=s3://mal/sets/street/images.tar.gz",
        "dataset.train_ann_path=s3://mal/sets/street/train.json",
    ),
    num_nodes=2,
    resources=Resources(gpus_per_node=8, cpu="64", memory="512Gi", shm_size="64Gi"),
    placement=Placement(
        node_selector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        tolerations=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
        queue_name="mal",
    ),
    storage=Storage(cache_claim="mal-cache"),
    environment=Environment(
        secrets={
            name: SecretKey(secret=S3_SECRET, key=name, optional=True) for name in SECRET_VARIABLES
        },
        config_map=CONFIG_MAP,
    ),
)
# Trainer v2 reads from its runtime what a TrainJob cannot express.
EXAMPLE_TRAINJOB = EXAMPLE_JOB.replace(
    training_runtime=TrainingRuntime(name="mal-torch", kind="TrainingRuntime")
)


def example_files() -> dict[Path, str]:
    """Return the content of every example, by its path."""
    jobs = {
        "pytorchjob.yaml": build_pytorchjob(EXAMPLE_JOB),
        "trainjob.yaml": build_trainjob(EXAMPLE_TRAINJOB),
    }
    return {
        EXAMPLES_DIR / name: _NOTICE + yaml.safe_dump(job, sort_keys=False)
        for name, job in jobs.items()
    }


def main() -> int:
    """Write the examples; return the process's exit code."""
    for path, text in example_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
