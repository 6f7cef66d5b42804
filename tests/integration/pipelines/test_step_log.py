"""What is shown of kfp.local's output, and what is learnt from it."""

import io

from pipelines._step_log import StepLog

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
    log, _ = logged(RUN, chunk=11)
    assert len(log.text.splitlines()) == len(RUN.splitlines())
    assert "\x1b" not in log.text
