"""When two steps are made from the same: by content, whatever folder a run has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import mal
from mal.kfp.pipelines._run_folder import RunFolder, is_run_alive, making_run_folder
from mal.kfp.pipelines._step_inputs import code_digest, digest_inputs, iterate_paths


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFolder]:
    folders = []
    for _ in range(2):
        with making_run_folder("auto-label", tmp_path / "runs") as run:
            folders.append(run)
    return folders


def command_of(parameters: Mapping[str, Any], **artifacts: Path) -> list[str]:
    listed = {
        name: {"artifacts": [{"uri": str(path), "metadata": {"created_at": str(path)}}]}
        for name, path in artifacts.items()
    }
    content = {"inputs": {"parameterValues": parameters, "artifacts": listed}}
    return ["sh", "-ec", "...", "source", "--executor_input", json.dumps(content), "train"]


def write_manifest(run: RunFolder, annotations_sha256: str) -> Path:
    """A manifest as of retrain, whose annotations were frozen in the run's own folder."""
    path = run.path / "snapshot-dataset" / "dataset"
    path.parent.mkdir(exist_ok=True)
    frozen = run.path / "detect-new-annotations" / "frozen.json"
    path.write_text(json.dumps({"annotations_uri": str(frozen), "sha256": annotations_sha256}))
    return path


@pytest.mark.parametrize(("second", "is_equal"), [("1a", True), ("2b", False)])
def test_a_manifest_is_compared_by_what_it_pins_not_by_the_folder_of_its_run(
    second: str, is_equal: bool, runs: list[RunFolder]
) -> None:
    digests = [
        digest_inputs(command_of({}, dataset=write_manifest(run, sha256)), {}, run)["dataset"]
        for run, sha256 in zip(runs, ("1a", second), strict=True)
    ]
    assert (digests[0] == digests[1]) is is_equal


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small file", "large file"])
def test_weights_that_each_run_fetches_anew_are_compared_by_content(
    size: int, runs: list[RunFolder]
) -> None:
    digests = []
    for run, content in zip([*runs, runs[1]], (b"a", b"a", b"b"), strict=True):
        weights = run.path / "champion.pth"
        weights.write_bytes(content * size)
        overrides = [f"train.pretrained_model_path={weights}"]
        digests.append(digest_inputs(command_of({"overrides": overrides}), {}, run)["overrides"])
    assert digests[0] == digests[1]
    assert digests[1] != digests[2]


def test_a_folder_of_results_counts_by_all_its_files(runs: list[RunFolder]) -> None:
    model = runs[0].path / "model"
    (model / "part").mkdir(parents=True)
    (model / "part" / "weights").write_text("one")
    command = command_of({}, model=model)
    before = digest_inputs(command, {}, runs[0])
    assert digest_inputs(command, {}, runs[1]) == before
    (model / "part" / "weights").write_text("two!")
    assert digest_inputs(command, {}, runs[0])["model"] != before["model"]


@pytest.mark.parametrize(
    "make",
    [
        str,
        lambda path: f"train.pretrained_model_path={path}",
        lambda path: [f"a=b=c {1}", f"key={path}"],
        lambda path: {"storage": {"claim": [str(path)]}},
        lambda path: f"train:\n  pretrained_model_path: {path}\n",
        lambda path: f"train: {{pretrained_model_path: '{path}'}}",
    ],
    ids=["plain", "override", "list", "mapping", "YAML", "YAML in a line"],
)
def test_a_path_is_found_wherever_a_parameter_has_it(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    assert list(iterate_paths(make(path))) == [path]


@pytest.mark.parametrize(
    "text", ["", "auto", "recipe:scratch", "a: b: c", "s3://bucket/a", "\0", "x" * 5000, "[~]", 3.0]
)
def test_what_is_no_path_is_none(text: Any) -> None:
    assert list(iterate_paths(text)) == []


def test_changed_code_is_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mal"
    package.mkdir()
    digests = []
    for source in ("a = 1", "a = 2", "a = 2"):
        (package / "__init__.py").write_text(source)
        monkeypatch.setattr(mal, "__file__", str(package / "__init__.py"))
        code_digest.cache_clear()
        digests.append(code_digest())
    code_digest.cache_clear()
    assert digests[0] != digests[1] == digests[2]


def test_runs_of_one_moment_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    class Clock(datetime.datetime):
        moments = iter([1, 1, 1, 2])

        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2026, 11, 30, second=next(cls.moments), tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Clock)
    with making_run_folder("tune", tmp_path) as first, making_run_folder("tune", tmp_path) as other:
        assert first.path != other.path
        assert other.earlier() == [first.path]
        assert is_run_alive(first.path)
    assert not is_run_alive(first.path)


def test_runs_of_a_pipeline_with_a_longer_name_are_not_its_own(tmp_path: Path) -> None:
    with (
        making_run_folder("auto-label", tmp_path) as run,
        making_run_folder("auto-label-distributed", tmp_path),
    ):
        assert run.earlier() == []
