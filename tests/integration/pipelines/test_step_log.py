"""What is shown of kfp.local's output, and what is learnt from it."""

import io

from mal.kfp.pipelines._step_log import StepLog

RUN = """\
20:01:41.436 - INFO - Running pipeline: \x1b[95m'auto-label'\x1b[0m
--------------------------------------------------------------------------------
20:01:41.448 - INFO - Executing task \x1b[96m'train'\x1b[0m
20:01:41.448 - INFO - Streamed logs:

[KFP Executor 2026-11-22 20:01:41,603 INFO]: Looking for component `train`
[KFP Executor 2026-11-22 20:01:41,609 INFO]: Got executor_input:
{
    "inputs": {
    }
}
epoch 1 of 2
{
}
[KFP Executor 2026-11-22 20:01:41,614 INFO]: Wrote executor output file.


20:01:41.647 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
20:01:41.648 - INFO - Task \x1b[96m'train'\x1b[0m outputs:
    model: Model( name='model',
                  metadata={} )
20:01:41.653 - INFO - Executing task \x1b[96m'export'\x1b[0m
20:01:41.653 - INFO - Streamed logs:

error: onnx must be installed for this.
20:01:43.635 - ERROR - Task \x1b[96m'export'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
"""


def logged(text: str, chunk: int) -> tuple[StepLog, str]:
    shown = io.StringIO()
    ticks = iter(range(100))
    log = StepLog(shown, num_steps=2, clock=lambda: float(next(ticks)))
    for start in range(0, len(text), chunk):
        log.write(text[start : start + chunk])
    return log, shown.getvalue()


def test_only_the_lines_of_the_steps_are_shown() -> None:
    _, shown = logged(RUN, chunk=7)
    assert shown.split("\n") == [
        "",
        "step 1 of 2: train",
        "  epoch 1 of 2",
        "  {",
        "  }",
        "",
        "step 2 of 2: export",
        "  error: onnx must be installed for this.",
        "",
    ]


def test_steps_are_timed_and_their_end_is_known() -> None:
    log, _ = logged(RUN, chunk=len(RUN))
    assert [(step.name, step.status, step.duration_s) for step in log.steps] == [
        ("train", "SUCCESS", 1.0),
        ("export", "FAILURE", 1.0),
    ]
    assert list(log.steps[1].lines) == ["error: onnx must be installed for this."]


def test_the_log_keeps_every_line_without_colours() -> None:
    kept = io.StringIO()
    StepLog(io.StringIO(), num_steps=2, kept=kept).write(RUN)
    assert len(kept.getvalue().splitlines()) == len(RUN.splitlines())
    assert "\x1b" not in kept.getvalue()


class ClosedTerminal(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_closed_stops_neither_steps_nor_log() -> None:
    kept = io.StringIO()
    log = StepLog(ClosedTerminal(), num_steps=2, kept=kept)
    log.write(RUN)
    assert [step.status for step in log.steps] == ["SUCCESS", "FAILURE"]
    assert len(kept.getvalue().splitlines()) == len(RUN.splitlines())


def test_a_step_that_kfp_announces_after_an_interrupt_is_none() -> None:
    shown = io.StringIO()
    log = StepLog(shown, num_steps=2, is_stopping=lambda: True)
    log.write(RUN)
    assert log.steps == []
    assert "step " not in shown.getvalue()
