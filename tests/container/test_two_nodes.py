"""Two containers with TAO's five variables are one training."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from containers import ONE_THREAD, USER, docker, make_writable, running, wait_for_exit
from tiny_sets import TINY_SPEC

pytestmark = pytest.mark.container

NETWORK = "mal-test-two-nodes"


@pytest.fixture
def network() -> Iterator[str]:
    docker("network", "rm", NETWORK)
    created = docker("network", "create", "--internal", NETWORK)
    assert created.returncode == 0, created.stdout
    yield NETWORK
    docker("network", "rm", NETWORK)


def node_options(rank: int, network: str, demo: Path, results: Path) -> list[str]:
    variables = {
        "WORLD_SIZE": 2,
        "NODE_RANK": rank,
        "MASTER_ADDR": "mal-node-0",
        "MASTER_PORT": 29400,
        "NUM_GPU_PER_NODE": 1,
        "MAL_SPEC": TINY_SPEC,
    }
    return [
        *(
            "--network",
            network,
            "--network-alias",
            f"mal-node-{rank}",
            "--hostname",
            f"node-{rank}",
        ),
        *("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/cache", "--user", USER, *ONE_THREAD),
        *("--cap-drop", "ALL", "--volume", f"{demo}:/data:ro", "--volume", f"{results}:/results"),
        *(part for key, value in variables.items() for part in ("--env", f"{key}={value}")),
    ]


def test_two_containers_train_as_two_nodes(
    images: Mapping[str, str], network: str, demo: Path, tmp_path: Path
) -> None:
    results = make_writable(tmp_path / "results")
    command = [
        *("mal", "train", "-e", "env:MAL_SPEC", "results_dir=/results"),
        *("dataset.train_ann_path=/data/train.json", "dataset.train_img_dir=/data/images"),
        *("dataset.val_ann_path=/data/val.json", "dataset.val_img_dir=/data/images"),
    ]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                running(images["train"], command, *node_options(rank, network, demo, results))
            )
            for rank in range(2)
        ]
        ends = [wait_for_exit(node) for node in nodes]
    for rank, (exit_code, log) in enumerate(ends):
        assert exit_code == 0, log
        assert f"node {rank} of 2" in log
    manifest = json.loads((results / "train" / "manifest.json").read_text())
    assert "mal_model_latest.pth" in json.dumps(manifest["outputs"])
    assert (results / "train" / "mal_model_latest.pth").exists()
