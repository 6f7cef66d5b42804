"""Runs in one output folder: side by side they share nothing, one after another what is equal."""

import json
from pathlib import Path

import pytest
from local_runs import SMALL_PIPELINES, run_to_end, start_run, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "steps"
    path.mkdir()
    monkeypatch.setenv("SMALL_FOLDER", str(path))
    return path


def run_chain(folder: Path, *options: str) -> tuple[int, str]:
    command = [SMALL_PIPELINES, "chain", "--output", str(folder.parent / "runs"), *options]
    return run_to_end(command, folder.parent / "printed")


def num_starts(folder: Path) -> dict[str, int]:
    return {path.stem: path.read_text().count("\n") for path in folder.glob("*.runs")}


def test_two_runs_of_one_pipeline_at_once_have_their_own_folder_outputs_and_log(
    folder: Path,
) -> None:
    (folder / "first.wait").touch()
    runs = folder.parent / "runs"
    command = [SMALL_PIPELINES, "chain", "--output", str(runs)]
    texts = ("one", "two", "one")
    with (
        start_run([*command, "-p", "text=one"], folder.parent / "0") as first,
        start_run([*command, "-p", "text=two"], folder.parent / "1") as second,
        start_run([*command, "-p", "text=one"], folder.parent / "2") as third,
    ):
        wait_until(lambda: num_starts(folder).get("first") == len(texts), "all have started")
        (folder / "first.wait").unlink()
        assert [run.end() for run in (first, second, third)] == [0, 0, 0]
    results = {}
    for path in runs.glob("chain-*"):
        # The third run may find a step of the first one finished, and names the folder.
        lines = (path / "run.log").read_text().splitlines()
        log = "\n".join(line for line in lines if "reused from" not in line)
        used = json.loads((path / "use" / "executor_output.json").read_text())["parameterValues"]
        assert used["Output"] == (path / "work" / "result").read_text()
        results[path.name] = used["Output"]
        others = [other.name for other in runs.glob("chain-*") if other != path]
        assert not any(name in log for name in others)
        assert log.count("finished with status SUCCESS") == 4, "three steps and the pipeline"
    assert sorted(results.values()) == ["first one", "first one", "first two"]
    assert str((runs / "latest").readlink()) in results


def test_a_failed_last_step_costs_one_step_once_its_cause_is_gone(folder: Path) -> None:
    (folder / "last.fail").touch()
    code, printed = run_chain(folder)
    assert (code, "error: step use failed" in printed) == (2, True), printed
    assert not (folder.parent / "runs" / "latest").is_symlink()
    (folder / "last.fail").unlink()
    code, printed = run_chain(folder)
    assert code == 0, printed
    (failed,) = set((folder.parent / "runs").glob("chain-*")) - {
        (folder.parent / "runs" / "latest").resolve()
    }
    assert f"unchanged, reused from {failed}/work" in printed
    assert num_starts(folder)["first"] == 1
    assert num_starts(folder)["last"] == 2


def test_a_finished_run_again_takes_everything_but_what_looks_at_the_world(folder: Path) -> None:
    for _ in range(3):
        assert run_chain(folder)[0] == 0
    assert num_starts(folder) == {"first": 1, "last": 1, "always": 3}
    output = json.loads(
        (folder.parent / "runs" / "latest" / "use" / "executor_output.json").read_text()
    )
    assert output["parameterValues"]["Output"] == "first "


def test_fresh_takes_nothing(folder: Path) -> None:
    assert run_chain(folder)[0] == 0
    code, printed = run_chain(folder, "--fresh")
    assert code == 0
    assert "reused from" not in printed
    assert num_starts(folder) == {"first": 2, "last": 2, "always": 2}


def test_a_changed_parameter_is_named_and_run_again(folder: Path) -> None:
    assert run_chain(folder)[0] == 0
    code, printed = run_chain(folder, "-p", "text=new")
    assert code == 0
    assert ", of which after changed" in printed
    assert ", of which made changed" in printed
    assert num_starts(folder) == {"first": 2, "last": 2, "always": 2}
    code, printed = run_chain(folder)
    assert num_starts(folder) == {"first": 2, "last": 2, "always": 3}, "the first run's are there"


def test_a_file_that_a_parameter_names_is_compared_by_content(folder: Path) -> None:
    weights = folder.parent / "weights.pth"
    weights.write_text("one")
    options = ("-p", f"text=train.pretrained_model_path={weights}")
    assert run_chain(folder, *options)[0] == 0
    weights.write_text("two")
    code, printed = run_chain(folder, *options)
    assert code == 0
    assert ", of which after changed" in printed
    assert num_starts(folder)["first"] == 2


def test_results_that_were_deleted_or_changed_are_not_taken(folder: Path) -> None:
    assert run_chain(folder)[0] == 0
    runs = folder.parent / "runs"
    (runs / "latest" / "work" / "result").unlink()
    code, printed = run_chain(folder)
    assert code == 0
    assert ", whose files were deleted" in printed
    assert num_starts(folder)["first"] == 2
    (runs / "latest" / "work" / "result").write_text("edited")
    assert run_chain(folder)[0] == 0
    assert num_starts(folder) == {"first": 2, "last": 2, "always": 3}
