"""Every command of the documents runs as it is written, in a copy of the repository.

The data stands at the names that the documents use. What needs more than this machine is marked
below with the reason; what is neither marked nor works fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from documents import DOCUMENTS, REPOSITORY, Block, Command, read_blocks
from object_store import serving_s3
from tiny_sets import TINY_SPEC

from mal.cluster import read_job_settings
from mal.data.synthetic import generate_demo_dataset

JOB_SETTINGS = ("environment:\n", "training_runtime:")
# By the first words of a block. It is read, not run.
FRAGMENTS = {
    "spec.yaml + recipe:NAME + key=value": "a diagram",
    "cli    ": "the layers",
    **dict.fromkeys(JOB_SETTINGS, "settings of a job, which are read below"),
    "STORE/champion.json": "the files of a model store",
    "-p backend=katib": "options of a command",
    "spec:": "a part of an object",
    "kubectl edit configmap kfp-launcher": "a ConfigMap of Kubeflow's",
    "securityContext:": "a part of Katib's configuration",
}
# By the first words of a command, the longest that fit.
NOT_RUN = {
    "make install": "installs what this test runs in",
    "mal labels export labels.json --to TARGET": "a pattern; tests/integration/readers runs it",
    "mal dataset convert IN OUT": "a pattern; tests/unit/labeling runs it",
    "mal dataset check ANNOTATIONS IMAGES": "a pattern; tests/unit/data runs it",
    "python3.11 -m venv readers": "installs 1 GB",
    "MAL_READERS_PYTHON": "needs what the command before installs",
    "make check": "CI runs it on the repository itself",
    "make demo": "installs; .ci/check_demo.py runs it in a fresh clone",
    "make test": "it is what runs this",
    "pip install": "installs into the environment of this test",
    "images/build": "needs Docker; tests/container runs it",
    "REGISTRY=registry/of/yours": "needs a registry",
    "docker buildx": "needs a registry",
    "kubectl": "needs a cluster",
    "mal pipelines doctor": "needs a cluster",
    "mal pipelines status": "needs Kubeflow Pipelines",
    "mal pipelines logs": "needs Kubeflow Pipelines",
    "mal pipelines lineage RUN_ID": "needs Kubeflow Pipelines",
    "aws": "needs AWS's client and a bucket",
    "mal pipelines run retrain -p store=models/nuclei ...": "'...' stands for the data",
    "mal pipelines submit": "needs Kubeflow Pipelines",
    "mal pipelines schedule": "needs Kubeflow Pipelines",
    "mal pipelines promote --store s3://models/nuclei": "needs a store with versions",
    "mal pipelines lineage s3://": "needs a store with versions",
    "docs/measure_points.sh shared/data/coco_open": "needs photographs that are not in git",
}
# By the first words of a command: options that end it early, as the documents explain them.
SHORTENED = {
    "mal train": "train.max_steps=2",
    "mal train    -e recipe:coco": "train.max_steps=2 train.cached_crops=16",
    "mal automl": "--trials 1 train.max_steps=2",
    "mal pipelines run auto_label": "-p overrides=train.max_steps=2",
    "mal pipelines run tune": "-p trials=1 -p overrides=train.max_steps=2",
    "docs/measure_points.sh DEMO": "train.max_steps=2",
    "python docs/sample_scenes.py": "--boxes 10",
}
# By the first words of a block of Python: what a reader has before it.
PYTHON = {
    "from mal import Predictor": """
        import numpy, pathlib, PIL.Image
        image = numpy.asarray(PIL.Image.open(sorted(pathlib.Path("images").glob("*.png"))[0]))
        boxes = numpy.array([[60, 40, 130, 100], [10, 10, 60, 70]])
        """,
    "kubernetes.use_field_path_as_env": "from step_of_a_pipeline import kubernetes, step",
    "kubernetes.mount_pvc": "from step_of_a_pipeline import kubernetes, step",
}
STEP_OF_A_PIPELINE = """
from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context

@dsl.container_component
def any_step():
    return dsl.ContainerSpec(image="any")

with pipeline_context.Pipeline("any"):
    step = any_step()
"""
DIGESTS = "".join(f"{name}: sha256:{64 * '0'}\n" for name in ("train", "component", "control"))
LEFT_OUT_OF_A_COPY = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "runs", "demo-data", "tests"
)


def mark_of(text: str, marks: Mapping[str, str]) -> str:
    """Return the longest of the marks that a text begins with, or ''."""
    return max((mark for mark in marks if text.startswith(mark)), key=len, default="")


def commands_of(blocks: Sequence[Block]) -> Iterator[Command]:
    for block in blocks:
        if not (mark_of(block.text, FRAGMENTS) or mark_of(block.text, PYTHON)):
            yield from block.commands()


def session_of(document: str) -> str:
    """Return what a reader types into one shell, from the first block to the last."""
    lines = ["set -eu -o pipefail"]
    for block in read_blocks(document):
        if mark := mark_of(block.text, PYTHON):
            preamble = "\n".join(line.strip() for line in PYTHON[mark].splitlines())
            lines += [f"echo '== {document}:{block.line} (Python)'", "python - <<'END'", preamble]
            lines += [block.text, "END"]
            continue
        for command in commands_of([block]):
            if not mark_of(command.text, NOT_RUN):
                short = SHORTENED.get(mark_of(command.text, SHORTENED), "")
                lines += [f"echo '== {document}:{command.line}'", f"{command.text} {short}"]
    return "\n".join(lines) + "\n"


def write_coco_set(folder: Path) -> None:
    """Write the demo set where the documents have theirs, and once more as TAO has it."""
    generate_demo_dataset(folder / "DEMO", num_images=6, seed=0)
    shutil.copytree(folder / "DEMO" / "images", folder / "images", dirs_exist_ok=True)
    boxes = json.loads((folder / "DEMO" / "train.json").read_text(encoding="utf-8"))
    for annotation in boxes["annotations"]:
        annotation.pop("segmentation", None)
    (folder / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    for part in ("day", "night"):
        shutil.copytree(folder / "images", folder / part)
        shutil.copy(folder / "DEMO" / "train.json", folder / f"{part}.json")
    shutil.copy(folder / "DEMO" / "val.json", folder / "masks.json")


def write_backbone(path: Path) -> None:
    """Write weights of the recipes' backbone, of which nothing was learned."""
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False)
    save_file(model.state_dict(), path)


def fill_bucket(folder: Path, endpoint: str) -> None:
    """Put the roots of TAO's data sets into the bucket."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="tester", aws_secret_access_key="tester-secret",
    )  # fmt: skip
    client.create_bucket(Bucket="bucket")
    archive = folder / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "DEMO" / "images", arcname="images")
    for root, name in (
        ("train", "DEMO/train.json"), ("val", "DEMO/val.json"), ("new", "boxes.json"),
    ):  # fmt: skip
        client.upload_file(str(archive), "bucket", f"{root}/images.tar.gz")
        client.upload_file(str(folder / name), "bucket", f"{root}/annotations.json")
    archive.unlink()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the repository with the environment that `make install` makes, and the data."""
    folder = tmp_path / "mal"
    shutil.copytree(REPOSITORY, folder, ignore=LEFT_OUT_OF_A_COPY)
    (folder / ".venv").symlink_to(sys.prefix)
    write_coco_set(folder)
    (folder / "tao_spec.yaml").write_text(TINY_SPEC, encoding="utf-8")
    (folder / "images.lock").write_text(DIGESTS, encoding="utf-8")
    write_backbone(folder / "W.safetensors")
    (folder / "step_of_a_pipeline.py").write_text(STEP_OF_A_PIPELINE, encoding="utf-8")
    return folder


@pytest.fixture
def variables(clone: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader; only README says how `mal` gets onto the path."""
    with serving_s3() as endpoint:
        fill_bucket(clone, endpoint)
        yield {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "MAL_CACHE_DIR": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "D": "DEMO",
            "W": "W.safetensors",
        }


def all_blocks() -> list[Block]:
    return [block for document in DOCUMENTS for block in read_blocks(document)]


def test_every_mark_stands_for_something_in_the_documents() -> None:
    blocks = all_blocks()
    commands = [command.text for command in commands_of(blocks)]
    run = [text for text in commands if not mark_of(text, NOT_RUN)]
    texts = [block.text for block in blocks]
    for marks, marked in (
        (FRAGMENTS, texts),
        (PYTHON, texts),
        (NOT_RUN, commands),
        (SHORTENED, run),
    ):
        assert {mark_of(text, marks) for text in marked} - {""} == set(marks)


@pytest.mark.parametrize("start", JOB_SETTINGS)
def test_settings_of_a_job_are_known(start: str) -> None:
    (block,) = (block for block in all_blocks() if block.text.startswith(start))
    assert read_job_settings(
        yaml.safe_load(block.text),
        name="any", namespace="any", image="any", outputs_uri="s3://b/out",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if session_of(name).count("\n") > 1]
)
def test_commands_of_a_document_run_in_its_order(
    document: str, clone: Path, variables: dict[str, str]
) -> None:
    if document != "README.md":
        variables["PATH"] = f"{sys.prefix}/bin:{variables['PATH']}"
    session = subprocess.run(
        ["bash", "-s"],
        input=session_of(document),
        cwd=clone,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert session.returncode == 0, session.stdout[-6000:]
