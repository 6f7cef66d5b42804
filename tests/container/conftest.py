"""The images, built once a session: from the cache where nothing changed."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from containers import REPOSITORY, reason_why_docker_cannot_run

from mal.data.synthetic import generate_demo_dataset
from mal.kfp.components._images import COMMITTED, IMAGE_NAMES


@pytest.fixture(scope="session")
def images() -> Mapping[str, str]:
    """References by name: those that the committed pipelines have."""
    reason = reason_why_docker_cannot_run()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run the containers: {reason}")
    if reason:
        pytest.skip(reason)
    own_names = {key: value for key, value in os.environ.items() if key not in {"REGISTRY", "TAG"}}
    built = subprocess.run(
        [REPOSITORY / "images" / "build"],
        env=own_names,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-5000:]
    return {name: COMMITTED.reference(name) for name in IMAGE_NAMES}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    generate_demo_dataset(folder, num_images=6, seed=0)
    return folder
