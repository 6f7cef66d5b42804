"""The example of docs/extending/component.md runs; the check names the fault of a half-made one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mal.kfp.components.checks import check_component

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "extending" / "component.md"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


COMPONENT, RUN = code_blocks("python")
(METADATA,) = code_blocks("yaml")
(CHECK,) = code_blocks("shell")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The component of the page, in a folder of its own."""
    folder = tmp_path / "count_boxes"
    folder.mkdir()
    (folder / "component.py").write_text(COMPONENT)
    (folder / "metadata.yaml").write_text(METADATA)
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_component_of_the_page_passes_the_check_and_runs(folder: Path) -> None:
    cwd = folder.parent
    checked = run_python(cwd, *CHECK.split()[1:])
    assert (checked.returncode, checked.stderr) == (0, "")
    assert run_python(cwd, "-m", "mal", "dataset", "demo", "-o", "demo").returncode == 0
    (cwd / "run.py").write_text(RUN)
    run = run_python(cwd, "run.py")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "every category has a box: True" in run.stdout
    (record,) = cwd.glob("runs/*/count-boxes/executor_output.json")
    outputs = {
        name: entry["artifacts"][0]["metadata"]
        for name, entry in json.loads(record.read_text())["artifacts"].items()
    }
    (counts_file,) = cwd.glob("runs/*/count-boxes/counts")
    counts = json.loads(counts_file.read_text())
    assert outputs["metrics"] == {"num_boxes": sum(counts.values()), **counts}
    assert outputs["counts"]["dataset_sha256"]
    assert outputs["summary"]["dataset_sha256"] == outputs["counts"]["dataset_sha256"]


def test_a_wrong_input_of_the_component_is_a_user_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    run = run_python(tmp_path, "run.py")
    assert run.returncode != 0
    assert "error: " in run.stdout
    assert "demo/train.json" in run.stdout


def in_source(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        assert old in COMPONENT
        (folder / "component.py").write_text(COMPONENT.replace(old, new))

    return change


def in_metadata(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        assert old in METADATA
        (folder / "metadata.yaml").write_text(METADATA.replace(old, new))

    return change


BODY_START = "    with Step(dataset=dataset) as step:\n"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            lambda folder: (folder / "metadata.yaml").unlink(),
            "has no metadata.yaml. Add it.",
            id="no metadata",
        ),
        pytest.param(
            in_source(
                "from kfp import dsl\n", "from kfp import dsl\n\nfrom mal.steps import Step\n"
            ),
            "line 5: mal.steps is imported at module level.* Import it in the function",
            id="mal at module level",
        ),
        pytest.param(
            in_source("from kfp import", "from __future__ import annotations\n\nfrom kfp import"),
            "kfp cannot read annotations .* Remove the import",
            id="annotations as text",
        ),
        pytest.param(
            in_source("base_image=CONTROL_IMAGE", 'base_image="python:3.11"'),
            r"base_image must be an image of _images\.py, got python:3\.11",
            id="another image",
        ),
        pytest.param(
            in_source("packages_to_install=[]", 'packages_to_install=["pandas"]'),
            "installs packages when it starts",
            id="packages at run time",
        ),
        pytest.param(
            in_source("        min_boxes: Least number of boxes of a category.\n", ""),
            "does not describe min_boxes",
            id="undescribed input",
        ),
        pytest.param(
            in_source("min_boxes: int = 0", "min_boxes: int = None"),
            "min_boxes must not be None",
            id="None",
        ),
        pytest.param(
            in_source("def count_boxes", "def count_all"),
            "must define one function count_boxes, got 0",
            id="another name",
        ),
        pytest.param(in_source("@dsl.component(", "@dsl.componet("), "Cannot load", id="typo"),
        pytest.param(in_source("    *,", "    *,,"), "is not Python", id="syntax"),
        pytest.param(
            in_source(BODY_START, BODY_START + "        pass\n" * 20),
            "must have at most 24 lines, got",
            id="long body",
        ),
        pytest.param(
            in_metadata("stability: experimental\n", ""),
            "must have the fields name, stability, dependencies, lastVerified in this order, got",
            id="a missing field",
        ),
        pytest.param(
            in_metadata("tags:", "owner: me\ntags:"), "in this order, got", id="an unknown field"
        ),
        pytest.param(
            in_metadata("name: count_boxes", "name: count"),
            "name must be count_boxes, got count",
            id="another name in metadata",
        ),
        pytest.param(
            in_metadata("experimental", "new"), "stability must be one of", id="stability"
        ),
        pytest.param(in_metadata('">=2.17.0"', '">=2.17"'), r"such as '>=2\.17\.0'", id="version"),
        pytest.param(in_metadata("- name: Pipelines", "- name: KFP"), "Pipelines", id="no KFP"),
        pytest.param(
            in_metadata("  kubeflow:", "  kubernetes:"), "must have kubeflow", id="no kubeflow"
        ),
        pytest.param(
            in_metadata("external_services: []", "external_services: S3"), "list", id="S3"
        ),
        pytest.param(in_metadata("[data_processing]", "data"), "tags must be a list", id="tags"),
        pytest.param(in_metadata("T00:00:00Z", ""), "YYYY-MM-DDT00:00:00Z", id="a day only"),
        pytest.param(
            in_metadata("tags:", "ci: {skip: true}\ntags:"), "ci may only have", id="unknown ci"
        ),
        pytest.param(in_metadata("tags:", "links: [a]\ntags:"), "links must be", id="links"),
        pytest.param(
            lambda folder: (folder / "metadata.yaml").write_text("a: ["), "YAML", id="yaml"
        ),
    ],
)
def test_the_check_names_the_fault_of_a_half_made_component(
    change: Callable[[Path], None], problem: str, folder: Path
) -> None:
    change(folder)
    problems = check_component(folder)
    assert len(problems) == 1, problems
    assert re.search(problem, problems[0])


def test_a_component_that_was_verified_long_ago_is_reported(folder: Path) -> None:
    import datetime

    assert check_component(folder, today=datetime.date(2027, 11, 29)) == []
    (problem,) = check_component(folder, today=datetime.date(2027, 11, 30))
    assert "older than a year" in problem


def test_the_command_prints_every_problem_of_every_folder(folder: Path) -> None:
    in_metadata("experimental", "new")(folder)
    in_source("base_image=CONTROL_IMAGE", 'base_image="python:3.11"')(folder)
    checked = run_python(folder.parent, *CHECK.split()[1:], "nowhere")
    assert checked.returncode == 2
    assert [line.partition(":")[0] for line in checked.stderr.splitlines()] == [
        "count_boxes",
        "count_boxes",
        "nowhere",
        "nowhere",
    ]
