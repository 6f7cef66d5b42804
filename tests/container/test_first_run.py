"""The commands of README.md with which a cluster gets its first data set."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from containers import REPOSITORY, docker
from seaweedfs import serving_seaweedfs

from mal.kfp.components._images import IMAGE_NAMES

pytestmark = pytest.mark.container

_POD = re.compile(
    r"--image=\$REGISTRY/(\w+):\S+.*?-- (mal dataset demo -o minio://(\w+)/\S+)", re.S
)


def test_the_pod_of_the_readme_writes_the_demo_set_to_kubeflows_store(
    images: Mapping[str, str], tmp_path: Path
) -> None:
    found = _POD.search((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    image, command, bucket = found.groups()
    assert image in IMAGE_NAMES
    with serving_seaweedfs(tmp_path / "store", "minio", "minio123") as store:
        store.client().create_bucket(Bucket=bucket)
        ended = docker(
            "run", "--rm", "--network", "host", "--cap-drop", "ALL",
            "--env", f"AWS_ENDPOINT_URL_S3={store.endpoint}",
            "--env", "AWS_ACCESS_KEY_ID=minio", "--env", "AWS_SECRET_ACCESS_KEY=minio123",
            images[image], *command.split(),
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout
        listed = store.client().list_objects_v2(Bucket=bucket)["Contents"]
    keys = {entry["Key"] for entry in listed}
    assert {"demo/train.json", "demo/val.json"} <= keys
    assert any(key.startswith("demo/images/") for key in keys)
