"""A local run that is interrupted or killed: its steps end in order, and no other one starts."""

import signal
from pathlib import Path

import pytest
from local_runs import (
    SMALL_PIPELINES,
    RunningRun,
    is_running,
    run_to_end,
    start_run,
    wait_until,
)

pytestmark = pytest.mark.integration

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "steps"
    path.mkdir()
    monkeypatch.setenv("SMALL_FOLDER", str(path))
    return path


def command_of(pipeline: str, folder: Path) -> list[str]:
    return [SMALL_PIPELINES, pipeline, "--output", str(folder.parent / "runs")]


def started_steps(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.runs")}


def wait_for_steps(run: RunningRun, folder: Path, names: set[str]) -> list[int]:
    """Wait until steps have started; returns all processes of the run but itself."""
    wait_until(
        lambda: started_steps(folder) >= names or run.process.poll() is not None, f"{names} start"
    )
    assert started_steps(folder) == names, run.printed
    pids = run.descendants()
    assert {int((folder / f"{name}.runs").read_text()) for name in names} <= set(pids)
    return pids


@pytest.mark.parametrize(
    ("pipeline", "names", "number", "to_group"),
    [
        ("branch", {"first"}, signal.SIGINT, True),
        ("branch", {"first"}, signal.SIGHUP, False),
        ("loop", {"first", "second"}, signal.SIGINT, False),
        ("loop", {"first", "second"}, signal.SIGTERM, True),
        ("handled", {"first"}, signal.SIGTERM, False),
        ("chain", {"first"}, signal.SIGHUP, True),
    ],
    ids=[
        "Ctrl-C before a branch",
        "SIGHUP alone before a branch",
        "SIGINT alone, two side by side",
        "SIGTERM to the group, two side by side",
        "SIGTERM alone, exit handler",
        "closed terminal, chain",
    ],
)
def test_an_interrupt_lets_the_running_steps_write_and_starts_no_other(
    pipeline: str,
    names: set[str],
    number: signal.Signals,
    to_group: bool,
    folder: Path,
) -> None:
    for name in ("first", "second", "third"):
        (folder / f"{name}.wait").touch()
    with start_run(command_of(pipeline, folder), folder.parent / "printed") as run:
        pids = wait_for_steps(run, folder, names)
        run.send(number, to_group=to_group)
        assert run.end() == EXIT_CODES[number], run.printed
    assert started_steps(folder) == names
    for name in names:
        assert (folder / f"{name}.checkpoint").read_text() == "1 signals"
    assert not [pid for pid in pids if is_running(pid)]
    assert run.printed.count("step ") - run.printed.count("the running step ") == len(names)
    assert "run the same command again" in run.printed
    assert "Traceback" not in run.printed
    assert not (folder.parent / "runs" / "latest").exists()


def test_a_second_interrupt_hastens_a_step_that_takes_its_time(folder: Path) -> None:
    for name in ("first.wait", "first.slow"):
        (folder / name).touch()
    with start_run(command_of("branch", folder), folder.parent / "printed") as run:
        wait_for_steps(run, folder, {"first"})
        run.send(signal.SIGINT, to_group=True)
        run.wait_for("interrupt again")
        # Until the step takes the first signal, the kernel holds two equal ones as one.
        wait_until((folder / "first.signals").exists, "the step takes the first signal")
        run.send(signal.SIGINT, to_group=True)
        assert run.end() == 130, run.printed
    assert (folder / "first.checkpoint").read_text() == "2 signals"
    assert started_steps(folder) == {"first"}


@pytest.mark.parametrize("to_group", [False, True], ids=["alone", "the group"])
def test_a_step_ends_with_its_checkpoint_when_its_run_is_killed(
    to_group: bool, folder: Path
) -> None:
    for name in ("first", "second"):
        (folder / f"{name}.wait").touch()
    with start_run(command_of("loop", folder), folder.parent / "printed") as run:
        pids = wait_for_steps(run, folder, {"first", "second"})
        run.send(signal.SIGKILL, to_group=to_group)
        run.end()
    wait_until(lambda: not any(map(is_running, pids)), "all processes of the run end")
    for name in ("first", "second"):
        assert (folder / f"{name}.checkpoint").read_text() == "1 signals"
    (log,) = (folder.parent / "runs").glob("loop-*/run.log")
    assert log.read_text().count("the run has ended") == 2
    assert "checkpoint written" in log.read_text().split("the run has ended")[-1]
    assert started_steps(folder) == {"first", "second"}


def test_what_a_killed_step_left_is_taken_over_once_it_has_ended(folder: Path) -> None:
    (folder / "first.wait").touch()
    (folder / "first.slow").touch()  # it does not end with the first signal
    command = command_of("chain", folder)
    with start_run(command, folder.parent / "killed") as killed:
        wait_for_steps(killed, folder, {"first"})
        killed.send(signal.SIGKILL, to_group=True)
        killed.end()
    with start_run(command, folder.parent / "printed") as run:
        run.wait_for("step 1 of 3: work")
        assert (folder / "first.runs").read_text().count("\n") == 1, "two steps in one folder"
        (folder / "first.wait").unlink()
        assert run.end() == 0, run.printed
    assert "resuming" in run.printed
    assert (folder / "first.runs").read_text().count("\n") == 2


def test_a_run_under_nohup_survives_the_end_of_its_terminal(folder: Path) -> None:
    (folder / "first.wait").touch()
    program = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    with start_run(["-c", program, *command_of("branch", folder)], folder.parent / "p") as run:
        wait_for_steps(run, folder, {"first"})
        run.send(signal.SIGHUP, to_group=True)
        (folder / "first.wait").unlink()
        assert run.end() == 0, run.printed
    assert started_steps(folder) == {"first", "promote"}


def test_the_same_command_gives_a_stopped_step_what_it_has_written(
    folder: Path,
) -> None:
    (folder / "first.wait").touch()
    command = command_of("chain", folder)
    with start_run(command, folder.parent / "printed") as run:
        wait_for_steps(run, folder, {"first"})
        run.send(signal.SIGTERM, to_group=False)
        assert run.end() == 143
    (folder / "first.wait").unlink()
    code, printed = run_to_end(command, folder.parent / "again")
    assert code == 0, printed
    assert "resuming" in printed
    assert "found half of first" in printed, "the step finds what its earlier try wrote"
