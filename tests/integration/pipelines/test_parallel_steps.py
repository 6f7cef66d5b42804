"""Steps that run side by side on one machine: whose line is whose, and which of them failed."""

import io
from pathlib import Path

import pytest
from kfp import dsl

from mal.kfp.pipelines._local import LocalRun, StepFailedError, run_locally
from mal.kfp.pipelines._registry import Pipeline

pytestmark = pytest.mark.integration

NUM_LINES = 20


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]
def write_lines(word: str, num_lines: int) -> str:
    import sys
    import time

    for number in range(num_lines):
        sys.stderr.write(f"  {word} {number}\n")
        time.sleep(0.02)
    if word == "bad":
        sys.stderr.write("error: word must be good, got bad.\n")
        sys.exit(2)
    return word


@dsl.pipeline(name="parallel")  # type: ignore[untyped-decorator]
def parallel(words: list[str]) -> None:
    with dsl.ParallelFor(words) as word:
        write_lines(word=word, num_lines=NUM_LINES).set_caching_options(False)


def run_parallel(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[LocalRun, str]:
    monkeypatch.setattr(Pipeline, "function", parallel)
    shown = io.StringIO()
    run = run_locally(Pipeline("parallel"), {"words": words}, output_dir=folder, shown=shown)
    return run, shown.getvalue()


def test_each_line_is_its_steps_and_nothing_of_the_runner_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["one", "two", "three"]
    run, shown = run_parallel(words, tmp_path, monkeypatch)
    said = {tuple(step.lines) for step in run.steps}
    assert said == {tuple(f"  {word} {n}" for n in range(NUM_LINES)) for word in words}
    assert [(step.status, step.duration_s > 0) for step in run.steps] == [("SUCCESS", True)] * 3
    lines = [line for line in shown.splitlines() if line]
    assert len(lines) == 3 * (1 + NUM_LINES), "a heading a step"
    # A step that runs alone needs no number; the third may begin before the second ends.
    starts = {line[:4] for line in lines if not line.startswith("step ")}
    assert starts <= {"    ", "  1:", "  2:", "  3:"}


@pytest.mark.parametrize("words", [["bad", "good"], ["good", "bad"], ["bad", "bad"]], ids=str)
def test_the_step_that_failed_is_named_with_its_own_message(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StepFailedError) as failure:
        run_parallel(words, tmp_path, monkeypatch)
    assert str(failure.value) == "step write-lines failed: word must be good, got bad."


@dsl.pipeline(name="retried")  # type: ignore[untyped-decorator]
def retried(words: list[str]) -> None:
    with dsl.ParallelFor(words) as word:
        task = write_lines(word=word, num_lines=1).set_caching_options(False)
        task.set_retry(2, backoff_duration="10s")


def test_a_step_that_fails_is_not_tried_again_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retries of our pipelines are for pods that a cluster loses."""
    monkeypatch.setattr(Pipeline, "function", retried)
    shown = io.StringIO()
    with pytest.raises(StepFailedError):
        run_locally(Pipeline("retried"), {"words": ["bad"]}, output_dir=tmp_path, shown=shown)
    assert shown.getvalue().count("error: word must be good") == 1
