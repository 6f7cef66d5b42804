"""List, compile, run, submit and schedule the pipelines; move and trace their models."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mal.errors import EXIT_USER_ERROR, MalError, MissingExtraError

from . import _lineage, _logs, _promote, _schedule, _status, _submit
from ._cluster import forwarding
from ._doctor import command as _doctor
from ._registry import Pipeline, find_pipeline, is_installed, list_pipelines
from ._target import COMMITTED_TARGET, TargetError, add_target_options, target_of

EXIT_FAILURE = 1


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m pipelines") -> int:
    """Run one command; return the process's exit code.

    Args:
        arguments: The command line without the program; None reads that of the process.
        prog: How the usage names the program.
    """
    options = _parser(prog).parse_args(arguments)
    try:
        with forwarding(options):
            return int(options.command(options))
    except (MalError, ModuleNotFoundError) as error:
        known = MissingExtraError.of(error) or error
        if not isinstance(known, MalError):
            raise
        sys.stderr.write(f"error: {known}\n")
        return EXIT_USER_ERROR


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="name the pipelines and their parameters")
    listing.set_defaults(command=_list)

    compiling = commands.add_parser("compile", help="write the YAML that a cluster takes")
    compiling.add_argument("names", nargs="*", metavar="NAME", help="pipelines; all by default")
    compiling.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for NAME.yaml; in the repository the default is the committed files, which "
        "take no options",
    )
    add_target_options(compiling)
    compiling.set_defaults(command=_compile)

    running = commands.add_parser("run", help="run a pipeline on this machine")
    running.add_argument("name", metavar="NAME")
    running.add_argument(
        "-p",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the pipeline; may be repeated",
    )
    running.add_argument(
        "--output", type=Path, default=Path("runs"), metavar="DIR", help="default: ./runs"
    )
    running.add_argument(
        "--fresh",
        action="store_true",
        help="reuse nothing of earlier runs in DIR, neither finished steps nor checkpoints",
    )
    running.set_defaults(command=_run)

    for module in (_submit, _status, _logs, _schedule, _promote, _lineage, _doctor):
        module.add_command(commands)
    return parser


def _list(_options: argparse.Namespace) -> int:
    for pipeline in list_pipelines():
        sys.stdout.write(f"{pipeline.name}: {pipeline.summary}\n")
        for parameter in pipeline.parameters.values():
            default = "required" if parameter.is_required else f"default {parameter.default!r}"
            sys.stdout.write(f"  {parameter.name:<20} {parameter.type.lower():<8} {default}\n")
    return 0


def _compile(options: argparse.Namespace) -> int:
    pipelines = [find_pipeline(name) for name in options.names] or list_pipelines()
    # The committed files are the same on every machine, whatever its environment.
    target = target_of(options, os.environ if options.output else {})
    if target != COMMITTED_TARGET and options.output is None:
        raise TargetError(
            "--output must name a folder where images or resources are given, got none. "
            "The committed files keep the defaults."
        )
    if options.output is None and is_installed():
        raise TargetError(
            "--output must name a folder, got none. Only the repository has committed files to "
            "write again."
        )
    for pipeline in pipelines:
        path = _compiled_path(pipeline, options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pipeline.compiled(target), encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


def _compiled_path(pipeline: Pipeline, output: Path | None) -> Path:
    return pipeline.compiled_path if output is None else output / f"{pipeline.name}.yaml"


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ._arguments import image_arguments, parse_arguments
    from ._interrupts import RunInterruptedError
    from ._local import StepCrashedError, run_locally
    from ._summary import print_summary

    pipeline = find_pipeline(options.name)
    arguments = image_arguments(pipeline) | parse_arguments(pipeline, options.assignments)
    output_dir = options.output.expanduser().resolve()
    try:
        run = run_locally(
            pipeline,
            arguments,
            output_dir=output_dir,
            shown=sys.stdout,
            is_fresh=options.fresh,
        )
    except StepCrashedError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILURE
    except RunInterruptedError as interrupt:
        _write_last(
            f"interrupted; the finished steps are in {output_dir}. To resume, run the same command "
            "again, without --fresh.\n"
        )
        return interrupt.exit_code
    print_summary(run, Console(file=sys.stdout))
    sys.stdout.write(f"{output_dir}\n")
    return 0


def _write_last(line: str) -> None:
    """Write to stderr, and keep the exit code if terminal or pipe are closed.

    Python exits with 120 if it cannot flush its streams at the end.
    """
    for stream, text in ((sys.stdout, ""), (sys.stderr, line)):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
