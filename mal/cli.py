"""The command line. Heavy packages are imported only by the command that needs them."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mal import __version__
from mal.dataset_commands import add_dataset_commands, add_labels_commands
from mal.errors import EXIT_USER_ERROR, MalError, MissingExtraError, SpecError
from mal.shown import printable
from mal.spec.experiment import ACTIONS, ExperimentSpec

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

_FILESYSTEM_ERRNOS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip

PIPELINES = "pipelines"

_RESUMED = ("train", "automl")
_SOURCE_OPTIONS = ("train_datasets", "eval_dataset", "inference_dataset", "parent_job")

ACTION_HELP = {
    "train": "learn masks from boxes",
    "evaluate": "measure a model against true masks",
    "inference": "write a mask for every box",
    "export": "write an ONNX model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of contract section 1."""
    parser = build_parser()
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = _parse(parser, words)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of the pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except BaseException as error:
        return _report_failure(error, resumes=getattr(args, "action", "") in _RESUMED)


def _report_failure(error: BaseException, *, resumes: bool) -> int:
    """Print the error on stderr; returns the exit code."""
    error = MissingExtraError.of(error) or error
    exit_code = getattr(error, "exit_code", None)
    if isinstance(error, MalError):
        code, message = EXIT_USER_ERROR, str(error)
    elif isinstance(error, OSError) and error.errno in _FILESYSTEM_ERRNOS:
        code = EXIT_USER_ERROR
        message = (
            f"Cannot read or write {error.filename or 'a file'}: {error.strerror}. Fix that, or "
            "choose another path."
        )
    elif isinstance(error, KeyboardInterrupt) or exit_code is not None:
        code = int(exit_code or EXIT_INTERRUPTED)
        remedy = " Run the same command again to resume." if resumes else ""
        message = f"{str(error) or 'stopped by SIGINT'}.{remedy}"
    elif isinstance(error, Exception):
        print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return EXIT_FAILED
    else:
        raise error
    print(f"mal: {printable(message)}", file=sys.stderr)
    return code


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; overrides may be before and after any option."""
    if arguments[:1] == [PIPELINES]:  # which has a parser of its own, and needs kfp
        return argparse.Namespace(run=_run_pipelines, arguments=arguments[1:])
    args, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(args, "overrides") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides += rest
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="mal", description="Instance masks from boxes.")
    parser.add_argument("--version", action="version", version=f"mal {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for action in ACTIONS:
        command = commands.add_parser(action, help=ACTION_HELP[action])
        _add_spec_options(command)
        command.set_defaults(run=_run_action, action=action)
    _add_automl_command(commands)
    _add_spec_command(commands)
    _add_schema_command(commands)
    add_dataset_commands(commands)
    add_labels_commands(commands)
    commands.add_parser(
        PIPELINES, help="list, compile, run, submit or schedule the Kubeflow pipelines"
    )
    node = commands.add_parser("node", help="print the node topology of the environment as JSON")
    node.set_defaults(run=_print_node)
    recipes = commands.add_parser("recipes", help="list the packaged recipes, or print one")
    recipes.add_argument("name", nargs="?")
    recipes.set_defaults(run=_print_recipes)
    return parser


def _add_spec_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-e", "--experiment", action="append", default=[], metavar="SPEC",
        help="spec file, recipe:NAME or env:VARIABLE (its YAML text); the later wins",
    )  # fmt: skip
    _add_source_options(command)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.lr=1e-4")


def _add_automl_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("automl", help="search the settings of a training")
    _add_spec_options(command)
    search = command.add_argument_group(
        "search", "0 does not limit; the default is 10 trials and the epochs of 5 trainings"
    )
    search.add_argument(
        "--algorithm",
        default="bayesian",
        help="bayesian (default), random, hyperband, asha or bohb",
    )
    search.add_argument(
        "--range", dest="ranges", action="append", default=[], metavar="KEY=RANGE",
        help="LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP or OPTION,OPTION@WEIGHT",
    )  # fmt: skip
    search.add_argument(
        "--parameter", dest="keys", action="append", default=[], metavar="KEY",
        help="search only this key; may be repeated",
    )  # fmt: skip
    search.add_argument(
        "--trial", dest="trial_overrides", action="append", default=[], metavar="key=value",
        help="override only for the trials, e.g. train.max_steps=200",
    )  # fmt: skip
    search.add_argument("--trials", type=int, default=0, help="largest number of trials")
    search.add_argument("--minutes", type=float, default=0, help="longest wall time")
    search.add_argument(
        "--epochs", type=int, default=0, help="largest number of epochs of all trials"
    )
    search.add_argument("--parallel", type=int, default=1, help="parallel trials; 0: one per GPU")
    search.add_argument("--seed", type=int, default=0, help="seed of the choice of values")
    command.set_defaults(run=_run_automl, action="automl")


def _add_source_options(command: argparse.ArgumentParser) -> None:
    """Add the options that fill data and checkpoint keys: they override files of -e."""
    sources = command.add_argument_group("data sets and parent job")
    files = "images.tar.gz and annotations.json"
    sources.add_argument(
        "--train-dataset", dest="train_datasets", action="append", default=[], metavar="ROOT",
        help=f"folder or s3:// root with {files} to train on",
    )  # fmt: skip
    for name, purpose in (("--eval-dataset", "measure on"), ("--inference-dataset", "label")):
        sources.add_argument(name, default="", metavar="ROOT", help=f"the same, to {purpose}")
    sources.add_argument(
        "--parent-job", default="", metavar="RESULTS_URI",
        help="results folder of a training, whose best checkpoint is used",
    )  # fmt: skip


def _add_spec_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    spec = commands.add_parser("spec", help="print the commented spec template of an action")
    spec.add_argument("action", choices=ACTIONS)
    spec.add_argument("-o", "--output", type=Path, help="file to write")
    spec.set_defaults(run=_print_spec)


def _add_schema_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    schema = commands.add_parser("schema", help="write schemas, templates and skill_info.yaml")
    schema.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    schema.set_defaults(run=_write_schemas)


def _run_action(args: argparse.Namespace) -> int:
    spec = _load_spec(args, args.action)
    from mal import stages
    from mal.runtime import handling_stop_signals, set_up_logging

    set_up_logging()
    with handling_stop_signals():
        result = getattr(stages, f"run_{args.action}")(spec)
    from mal.stages.written_files import results_uri

    _print_result(args.action, result, results_uri(args.action, spec))
    return 0


def _run_automl(args: argparse.Namespace) -> int:
    from mal.automl.settings import Budget, SearchSettings, algorithm_from

    settings = SearchSettings(
        algorithm=algorithm_from(args.algorithm),
        keys=tuple(args.keys),
        ranges=tuple(args.ranges),
        trial_overrides=tuple(args.trial_overrides),
        budget=Budget(num_trials=args.trials, minutes=args.minutes, num_epochs=args.epochs),
        num_parallel=args.parallel,
        seed=args.seed,
    )
    spec = _load_spec(args, "train")
    from mal.runtime import handling_stop_signals, set_up_logging
    from mal.stages.automl import run_automl, search_uri

    set_up_logging()
    with handling_stop_signals():
        result = run_automl(spec, settings)
    _print_lines(result.lines(), result.results_dir, search_uri(spec))
    return 0


def _load_spec(args: argparse.Namespace, action: str) -> ExperimentSpec:
    from mal.tao import load_run_spec

    given = {name: getattr(args, name) for name in _SOURCE_OPTIONS}
    has_sources = any(any(value) for value in given.values())  # '' is unset, in a list too
    if not (args.experiment or args.overrides or has_sources):
        raise SpecError("-e must name a spec, got none. Write -e SPEC.yaml or -e recipe:NAME.")
    return load_run_spec(action, args.experiment, args.overrides, **given)


def _print_result(action: str, result: Any, results_uri: str) -> None:
    from mal.evaluation.summary import result_lines

    _print_lines(result_lines(action, result), result.results_dir, results_uri)


def _print_lines(lines: Iterable[str], results_dir: Path, results_uri: str) -> None:
    """Print metrics and paths; for remote results with their URI instead of the local copy."""
    is_remote = "://" in results_uri
    for line in lines:
        print(printable(line.replace(str(results_dir), results_uri) if is_remote else line))


def _print_spec(args: argparse.Namespace) -> int:
    from mal.spec.template import spec_template

    text = spec_template(args.action)
    if args.output:
        from mal.artifacts import write_text

        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


def _write_schemas(args: argparse.Namespace) -> int:
    from mal.tao.metadata import write_metadata

    for path in write_metadata(args.output):
        print(path)
    return 0


def _run_pipelines(args: argparse.Namespace) -> int:
    from mal.kfp.pipelines.__main__ import main as run_command

    return run_command(args.arguments, prog=f"mal {PIPELINES}")


def _print_node(_: argparse.Namespace) -> int:
    from mal.distributed import NodeTopology

    topology = NodeTopology.from_env(os.environ)
    print(json.dumps({**dataclasses.asdict(topology), "world_size": topology.world_size}))
    return 0


def _print_recipes(args: argparse.Namespace) -> int:
    from mal.recipes import list_recipes, read_recipe

    if args.name:
        print(read_recipe(args.name), end="")
    else:
        for name, summary in list_recipes().items():
            print(f"{name:12} {summary}")
    return 0
