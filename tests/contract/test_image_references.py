"""Where the images come from: one place, another registry at compile time, locked content."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from locks import canonical, pins

from mal.kfp.components._images import COMMITTED, IMAGE_NAMES, ImageReferences
from mal.kfp.pipelines.__main__ import main
from mal.kfp.pipelines._local import StepCrashedError
from mal.kfp.pipelines._registry import Pipeline, list_pipelines
from mal.kfp.pipelines._target import Target

REPOSITORY = Path(__file__).parents[2]
LOCKS = REPOSITORY / "images" / "locks"
DIGESTS = {name: f"sha256:{str(position) * 64}" for position, name in enumerate(IMAGE_NAMES)}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAL_REGISTRY", "MAL_TAG", "MAL_DIGESTS_FILE"):
        monkeypatch.delenv(name, raising=False)


def compile_auto_label(folder: Path, *options: str) -> dict[str, str]:
    """Return the image of each step."""
    assert main(["compile", "auto_label", "-o", str(folder), *options]) == 0
    document: dict[str, Any] = next(yaml.safe_load_all((folder / "auto_label.yaml").read_text()))
    executors = document["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): executor["container"]["image"]
        for name, executor in executors.items()
    }


def write_digests(folder: Path, digests: object) -> str:
    path = folder / "digests.yaml"
    path.write_text(yaml.safe_dump(digests))
    return str(path)


def test_another_registry_and_tag_reach_every_step(tmp_path: Path) -> None:
    images = compile_auto_label(
        tmp_path, "--registry", "mirror.corp:5000/ml/mal", "--tag", "1.2-rc1"
    )
    heavy = dict.fromkeys(
        ("tune", "evaluate", "inference", "export"), "mirror.corp:5000/ml/mal/component:1.2-rc1"
    )
    assert images == {**heavy, "snapshot-dataset": "mirror.corp:5000/ml/mal/control:1.2-rc1"}
    assert "registry.example.com" not in (tmp_path / "auto_label.yaml").read_text()


def test_digests_beat_the_tag(tmp_path: Path) -> None:
    file = write_digests(tmp_path, DIGESTS)
    images = compile_auto_label(
        tmp_path, "--registry", "mirror/mal", "--tag", "1", "--digests", file
    )
    assert images["tune"] == f"mirror/mal/component@{DIGESTS['component']}"
    assert images["snapshot-dataset"] == f"mirror/mal/control@{DIGESTS['control']}"


def test_the_environment_names_images_where_no_option_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAL_REGISTRY", "mirror/mal")
    monkeypatch.setenv("MAL_TAG", "1")
    assert compile_auto_label(tmp_path)["tune"] == "mirror/mal/component:1"
    assert compile_auto_label(tmp_path, "--registry", "b")["tune"] == "b/component:1"
    monkeypatch.setenv("MAL_DIGESTS_FILE", write_digests(tmp_path, DIGESTS))
    pinned = f"mirror/mal/component@{DIGESTS['component']}"
    assert compile_auto_label(tmp_path)["tune"] == pinned
    assert compile_auto_label(tmp_path, "--tag", "2")["tune"] == "mirror/mal/component:2"


@pytest.mark.parametrize("pipeline", list_pipelines(), ids=lambda p: p.name)
def test_every_container_knows_the_digest_of_its_image(pipeline: Pipeline) -> None:
    images = ImageReferences(registry="mirror/mal", digests=DIGESTS)
    document = next(yaml.safe_load_all(pipeline.compiled(Target(images))))
    for executor in document["deploymentSpec"]["executors"].values():
        container = executor["container"]
        (variable,) = container["env"]
        assert variable["name"] == "MAL_IMAGE_DIGEST"
        assert container["image"].endswith(f"@{variable['value']}")


def test_without_options_the_committed_file_comes_out(tmp_path: Path) -> None:
    compile_auto_label(tmp_path)
    committed = REPOSITORY / "pipelines" / "auto_label" / "pipeline.yaml"
    assert (tmp_path / "auto_label.yaml").read_text() == committed.read_text()


def test_a_parameter_that_names_the_job_image_follows() -> None:
    compiled = f"defaultValue: {COMMITTED.reference('train')}\nimage: other/train:0.1.0\n"
    moved = ImageReferences(registry="mirror/mal", tag="2").put_in(compiled)
    assert moved == "defaultValue: mirror/mal/train:2\nimage: other/train:0.1.0\n"


@pytest.mark.parametrize("name", ["auto_label_distributed", "tune"])
def test_the_pods_of_jobs_get_the_image_of_the_compiled_registry(name: str, tmp_path: Path) -> None:
    options = ["--registry", "mirror/mal", "--tag", "2"]
    assert main(["compile", name, "-o", str(tmp_path), *options]) == 0
    document = next(yaml.safe_load_all((tmp_path / f"{name}.yaml").read_text()))
    parameters = document["root"]["inputDefinitions"]["parameters"]
    assert parameters["image"]["defaultValue"] == "mirror/mal/train:2"


@pytest.mark.parametrize("name", ["auto_label_distributed", "tune"])
@pytest.mark.parametrize(
    ("given", "image"),
    [([], "mirror/mal/train:2"), (["-p", "image=mine/train:3"], "mine/train:3")],
    ids=["of the environment", "given"],
)
def test_a_local_run_gives_jobs_the_image_of_the_environment(
    name: str, given: list[str], image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run(_pipeline: Pipeline, arguments: dict[str, Any], **_: Any) -> None:
        asked.update(arguments)
        raise StepCrashedError("far enough")

    monkeypatch.setattr("mal.kfp.pipelines._local.run_locally", run)
    monkeypatch.setenv("MAL_REGISTRY", "mirror/mal")
    monkeypatch.setenv("MAL_TAG", "2")
    places = ("train_images", "train_annotations", "val_images", "val_annotations")
    needed = [part for place in places for part in ("-p", f"{place}=s3://b/{place}")]
    assert main(["run", name, "--output", str(tmp_path), *needed, *given]) == 1
    assert asked["image"] == image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tag", "latest"], "tag must name a fixed version, got 'latest'"),
        (["--tag", ""], "tag must name a fixed version"),
        (["--tag", "a b"], "tag must name a fixed version"),
        (["--registry", "https://mirror/mal"], "registry must read HOST[:PORT][/PATH]"),
        (["--registry", "mirror/mal/"], "registry must read HOST[:PORT][/PATH]"),
        (["--registry", ""], "registry must read HOST[:PORT][/PATH]"),
        (["--digests", "/no/such"], "Cannot read the digests in /no/such"),
    ],
    ids=["latest", "no tag", "space", "scheme", "slash", "no registry", "no file"],
)
def test_references_that_cannot_be_pulled_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", "-o", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("digests", "message"),
    [
        ({**DIGESTS, "train": "sha256:12"}, "digest of train must read sha256: and 64 digits"),
        ({"train": DIGESTS["train"]}, "digests must be those of train, component, control"),
        ({**DIGESTS, "tune": DIGESTS["train"]}, "digests must be those of"),
        (["train"], "digests must be those of"),
    ],
    ids=["short", "missing", "unknown", "a list"],
)
def test_digests_that_are_not_those_of_the_images_are_refused(
    digests: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_digests(tmp_path, digests)
    assert main(["compile", "-o", str(tmp_path / "out"), "--digests", file]) == 2
    assert message in capsys.readouterr().err


def test_committed_files_are_not_overwritten_with_another_registry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compile", "--registry", "mirror/mal"]) == 2
    assert "--output must name a folder" in capsys.readouterr().err


def test_committed_files_are_the_same_whatever_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAL_REGISTRY", "mirror/mal")
    monkeypatch.setattr(Pipeline, "compiled_path", tmp_path / "pipeline.yaml")
    assert main(["compile", "auto_label"]) == 0
    committed = REPOSITORY / "pipelines" / "auto_label" / "pipeline.yaml"
    assert (tmp_path / "pipeline.yaml").read_text() == committed.read_text()


def test_images_have_the_versions_that_the_tests_run_with() -> None:
    tested = pins(REPOSITORY / "constraints.txt")
    for lock in sorted(LOCKS.glob("*.txt")):
        locked = pins(lock)
        assert locked, lock.name
        assert {n: v for n, v in locked.items() if tested.get(n, v) != v} == {}, lock.name


@pytest.mark.parametrize(
    ("groups", "locks"),
    [
        (["own", "s3", "export"], ["torch-cuda", "train"]),
        (
            ["own", "s3", "export", "kfp", "cluster", "automl"],
            ["torch-cuda", "train", "component", "sdists"],
        ),
        (["s3", "kfp", "cluster"], ["control", "sdists"]),
    ],
    ids=["train", "component", "control"],
)
def test_locks_hold_every_requirement_of_the_package(groups: list[str], locks: list[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    grouped = {**project["optional-dependencies"], "own": project["dependencies"]}
    required = [each for group in groups for each in grouped[group]]
    names = {canonical(re.split(r"[<>=!\[;]", each)[0]) for each in required}
    locked = {name for lock in locks for name in pins(LOCKS / f"{lock}.txt")}
    assert names - locked == set(), "run: make lock"


def test_every_locked_package_has_its_hashes() -> None:
    for lock in LOCKS.glob("*.txt"):
        entries = re.split(r"^(?=\S)", lock.read_text(), flags=re.MULTILINE)
        assert [e for e in entries if e.strip() and "--hash=sha256:" not in e] == [], lock.name
