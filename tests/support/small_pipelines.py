"""Pipelines whose steps take no time but what a test lets them take; run as a program.

    SMALL_FOLDER=DIR python small_pipelines.py NAME --output DIR [-p KEY=VALUE]

is `python -m pipelines run` of one of these. A step leaves files in SMALL_FOLDER, which is none of
its inputs: `<name>.runs`, a line a start with the id of its child, `<name>.signals`, how many it
took, and `<name>.checkpoint` when it is stopped. While `<name>.wait` is there it does not end;
while `<name>.fail` is there it fails.
"""

import sys

from kfp import dsl


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]
def work(name: str, result: dsl.Output[dsl.Artifact], after: str = "") -> str:
    import os
    import signal
    import subprocess
    import sys
    import time
    from pathlib import Path

    here = Path(os.environ["SMALL_FOLDER"])
    signals = []

    def take(number: int, _frame: object) -> None:
        signals.append(number)
        (here / f"{name}.signals").write_text(f"{len(signals)}")
        if len(signals) > 1 or not (here / f"{name}.slow").exists():
            (here / f"{name}.checkpoint").write_text(f"{len(signals)} signals")
            sys.stderr.write("checkpoint written\n")
            sys.exit(143)

    signal.signal(signal.SIGTERM, take)
    # As a loader's process: it shares the output, and nobody tells it to end.
    child = subprocess.Popen(["sleep", "600"])
    if Path(result.path).exists():
        sys.stderr.write(f"found {Path(result.path).read_text()}\n")
    Path(result.path).write_text(f"half of {name} {after}")
    with (here / f"{name}.runs").open("a") as runs:
        runs.write(f"{child.pid}\n")
    while (here / f"{name}.wait").exists():
        sys.stderr.write("waiting\n")
        time.sleep(0.05)
    child.kill()
    if (here / f"{name}.fail").exists():
        sys.stderr.write("error: it must not fail, got a failure.\n")
        sys.exit(2)
    Path(result.path).write_text(f"{name} {after}")
    return name


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]
def use(made: dsl.Input[dsl.Artifact], name: str) -> str:
    import os
    import sys
    from pathlib import Path

    here = Path(os.environ["SMALL_FOLDER"])
    with (here / f"{name}.runs").open("a") as runs:
        runs.write("0\n")
    if (here / f"{name}.fail").exists():
        sys.stderr.write("error: it must not fail, got a failure.\n")
        sys.exit(2)
    return Path(made.path).read_text()


@dsl.component(base_image="python", packages_to_install=[], install_kfp_package=False)  # type: ignore[untyped-decorator]
def clean_up(status: dsl.PipelineTaskFinalStatus) -> None:
    import os
    from pathlib import Path

    (Path(os.environ["SMALL_FOLDER"]) / "clean-up.runs").write_text(status.state)


@dsl.pipeline(name="chain")  # type: ignore[untyped-decorator]
def chain(text: str = "") -> None:
    """A step that may be taken over, one that uses it, and one that looks at the world."""
    made = work(name="first", after=text).set_caching_options(True)
    use(made=made.outputs["result"], name="last").set_caching_options(True)
    use(made=made.outputs["result"], name="always").set_caching_options(False)


@dsl.pipeline(name="branch")  # type: ignore[untyped-decorator]
def branch() -> None:
    """What is promoted after a step, in a branch."""
    made = work(name="first")
    with dsl.If(made.outputs["Output"] != "nothing"):
        use(made=made.outputs["result"], name="promote")


@dsl.pipeline(name="loop")  # type: ignore[untyped-decorator]
def loop() -> None:
    """Three steps, of which kfp runs two at a time."""
    with dsl.ParallelFor(["first", "second", "third"]) as name:
        work(name=name)


@dsl.pipeline(name="handled")  # type: ignore[untyped-decorator]
def handled() -> None:
    """A step whose end is handled."""
    with dsl.ExitHandler(clean_up()):
        work(name="first")


def main() -> int:
    """Run `python -m pipelines run` with these pipelines."""
    from unittest import mock

    from mal.kfp.pipelines import __main__ as commands
    from mal.kfp.pipelines._registry import Pipeline

    name = sys.argv[1]
    with (
        mock.patch.object(Pipeline, "function", globals()[name]),
        mock.patch.object(commands, "find_pipeline", Pipeline),
    ):
        return commands.main(["run", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
