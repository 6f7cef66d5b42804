"""What the first run on a cluster needs of the images: README's pod, and the steps' programs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from containers import REPOSITORY, docker, run_hardened
from seaweedfs import serving_seaweedfs

from mal.kfp.components._images import IMAGE_NAMES
from mal.kfp.pipelines._registry import list_pipelines

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


def test_each_image_has_the_programs_of_its_steps(images: Mapping[str, str]) -> None:
    """Each step starts, and stops at an input that is none, without a warning about versions."""
    for image, steps in steps_by_image().items():
        script = "\n".join(
            f"echo == && {' '.join(command)} --executor_input '{{}}' || true" for command in steps
        )
        shown = run_hardened(image, ["sh", "-c", script], "--tmpfs", "/tmp").stdout
        ends = shown.split("==\n")[1:]
        assert len(ends) == len(steps)
        for command, end in zip(steps, ends, strict=True):
            assert "another version" not in end, (command, end)
            assert "KeyError" in end, (command, end)


def steps_by_image() -> dict[str, list[list[str]]]:
    """Return the distinct commands of all compiled pipelines, without the executor input."""
    found: dict[str, set[str]] = {}
    for pipeline in list_pipelines():
        document = next(yaml.safe_load_all(pipeline.compiled()))
        for executor in document["deploymentSpec"]["executors"].values():
            container = executor["container"]
            words = [*container["command"], *container["args"]]
            position = words.index("--executor_input")
            del words[position : position + 2]
            found.setdefault(container["image"], set()).add(json.dumps(words))
    return {image: [json.loads(words) for words in sorted(each)] for image, each in found.items()}
