"""What every image promises to the cluster that runs it."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from containers import (
    DOCKER,
    ONE_THREAD,
    REPOSITORY,
    USER,
    docker,
    make_writable,
    run_hardened,
    running,
    wait_for_exit,
)
from tiny_sets import TINY_SPEC

from mal import __version__
from mal.kfp.components._images import IMAGE_NAMES

pytestmark = pytest.mark.container
every_image = pytest.mark.parametrize("name", IMAGE_NAMES)

MAX_CONTROL_MB = 400
LIGHT_MODULES = (
    *("mal.cluster", "mal.errors", "mal.tao", "mal.registry", "mal.spec", "mal.storage"),
    *("boto3", "kfp", "kfp.kubernetes", "kubernetes"),
)


def inspect(image: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(docker("image", "inspect", image).stdout)[0]
    return document


@every_image
def test_runs_as_any_user_with_nothing_to_write_to(name: str, images: Mapping[str, str]) -> None:
    process = run_hardened(images[name], ["mal", "--version"])
    assert (process.returncode, process.stdout) == (0, f"mal {__version__}\n")


@every_image
def test_has_a_numeric_user_that_is_not_root(name: str, images: Mapping[str, str]) -> None:
    user = inspect(images[name])["Config"]["User"]
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)


@every_image
def test_labels_say_what_it_was_built_from(name: str, images: Mapping[str, str]) -> None:
    config = inspect(images[name])["Config"]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    own = {
        key.removeprefix("org.opencontainers.image."): value
        for key, value in config["Labels"].items()
    }
    assert own["title"] == f"mal/{name}"
    assert own["version"] == __version__
    assert own["revision"].removesuffix("-dirty") == head.stdout.strip()
    assert f"MAL_GIT_COMMIT={own['revision']}" in config["Env"]
    assert own["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", own["created"])


@every_image
def test_holds_no_compiler_no_cache_and_no_setting_of_the_build(
    name: str, images: Mapping[str, str]
) -> None:
    script = """
        command -v cc gcc g++ clang make
        find / -xdev -path '*/.cache/pip' -o -xdev -path '/run/secrets/*' -size +0
        /opt/mal/bin/python -c 'import pip' 2>/dev/null && echo pip
        cat /etc/pip.conf 2>/dev/null
        env | grep -i -e '^pip_' -e proxy
        true
    """
    process = run_hardened(images[name], ["sh", "-c", script])
    lines = [line for line in process.stdout.splitlines() if "Permission denied" not in line]
    assert lines == []


@every_image
def test_code_is_compiled_already(name: str, images: Mapping[str, str]) -> None:
    """Where nothing can be written, Python would compile what it imports at every start."""
    process = run_hardened(images[name], ["python", "-v", "-c", "import mal.steps.step"])
    assert re.search(r"code object from '/opt/mal[^']*/mal/steps/[^']*\.pyc'", process.stdout)
    assert not re.search(r"code object from '/opt/mal[^']*\.py'", process.stdout)


def test_big_layers_exist_once(images: Mapping[str, str]) -> None:
    train, component = (inspect(images[name]) for name in ("train", "component"))
    # The last one, mal's own, is small, and Docker 20.10 may write its files in another order.
    big = train["RootFS"]["Layers"][:-1]
    assert big == component["RootFS"]["Layers"][: len(big)]
    assert component["Size"] - train["Size"] < 300e6


def test_control_is_small_and_has_no_torch(images: Mapping[str, str]) -> None:
    script = "import importlib.util as u; print([n for n in ('torch', 'timm') if u.find_spec(n)])"
    assert run_hardened(images["control"], ["python", "-c", script]).stdout.strip() == "[]"
    assert inspect(images["control"])["Size"] < MAX_CONTROL_MB * 1e6


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_control_imports(module: str, images: Mapping[str, str]) -> None:
    process = run_hardened(
        images["control"], ["python", "-c", f"import {module}"], "--tmpfs", "/tmp"
    )
    assert process.returncode == 0, process.stdout


def test_sigterm_reaches_the_training_which_leaves_a_checkpoint(
    images: Mapping[str, str], demo: Path, tmp_path: Path
) -> None:
    results = make_writable(tmp_path / "results")
    command = [
        *("mal", "train", "-e", "env:MAL_SPEC", "results_dir=/results"),
        *("dataset.train_ann_path=/data/train.json", "dataset.train_img_dir=/data/images"),
        *("dataset.val_ann_path=", "dataset.val_img_dir=", "train.max_steps=100000"),
    ]
    options = [
        *("--read-only", "--tmpfs", "/tmp", "--user", USER, "--network", "none", *ONE_THREAD),
        *("--env", f"MAL_SPEC={TINY_SPEC}", "--volume", f"{demo}:/data:ro"),
        *("--volume", f"{results}:/results"),
    ]
    with running(images["train"], command, *options) as container:
        wait_until_trained_a_step(container)
        docker("kill", "--signal", "TERM", container)
        exit_code, log = wait_for_exit(container)
    assert exit_code == 143, log
    assert "stopped by SIGTERM" in log
    assert list((results / "train").glob("mal_model_epoch_*.pth"))


def wait_until_trained_a_step(container: str) -> None:
    with subprocess.Popen(
        [DOCKER, "logs", "--follow", container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as log:
        assert log.stdout is not None
        lines = []
        for line in log.stdout:
            lines.append(line)
            if re.search(r"[1-9]\d*/100000 ", line):
                log.kill()
                return
    raise AssertionError("".join(lines))
