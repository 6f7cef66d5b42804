"""What real training in the pods of a test needs: an image, a Secret, a data set in a bucket."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

from stand_in import StandIn
from tiny_sets import TinySet

from cluster.launching import IMAGE

ROOT = Path(__file__).parents[3]
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester-secret"}
SPEC = """\
dataset: {min_obj_size: 0, num_workers_per_gpu: 0}
train: {num_epochs: 2, batch_size: 2, lr: 1e-3, loss_mil_step: 0, loss_crf_step: 0}
evaluate: {batch_size: 4}
device: cpu
wandb: {enable: false}
"""


def upload(s3: Any, data: TinySet) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(data.images, "images")
    s3.put_object(Bucket="bucket", Key="set/images.tar.gz", Body=archive.getvalue())
    s3.put_object(Bucket="bucket", Key="set/boxes.json", Body=data.annotations.read_bytes())


def prepare(cluster: StandIn, s3: Any) -> None:
    """Make what an operator of the cluster makes: the image, the Secret, the ConfigMap."""
    cluster.add_image(IMAGE, f'exec {sys.executable} -m mal "$@"')
    cluster.kubelet.variables |= {"PYTHONPATH": str(ROOT), "AWS_EC2_METADATA_DISABLED": "true"}
    keys = {f"MAL_S3_{name.removeprefix('AWS_')}": value for name, value in CREDENTIALS.items()}
    cluster.add_object("secrets", {"metadata": {"name": "mal-s3"}, "stringData": keys})
    settings = {"MAL_S3_ENDPOINT_URL": s3.meta.endpoint_url, "MAL_S3_REGION": "us-east-1"}
    cluster.add_object("configmaps", {"metadata": {"name": "mal-config"}, "data": settings})
