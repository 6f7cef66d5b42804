"""`mal pipelines schedule`: recurring runs that can be applied repeatedly.

The API can neither change a recurring run nor reject a second one of the same name. A schedule is
the only recurring run of its name, with a digest of its content in its description.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.errors import ClusterError

from ._argument_checks import check_arguments
from ._arguments import parse_arguments
from ._cluster import add_options, connect, wrap_api_errors
from ._registry import find_pipeline
from ._submit import add_pipeline_options, compiled_file
from ._target import cluster_target_of

MAX_CONCURRENCY = 1
NUM_CRON_FIELDS = 6

_PAGE_SIZE = 100
_DIGEST_MARK = "mal schedule sha256:"


@dataclass(frozen=True)
class Schedule:
    """The content of a recurring run.

    Attributes:
        compiled: The pipeline as YAML.
        cron: Six fields, seconds first, UTC.
        service_account: '' uses Kubeflow's.
        pipeline_root: Root URI of the artifacts; '' uses Kubeflow's.
    """

    name: str
    compiled: str
    parameters: Mapping[str, Any]
    cron: str
    service_account: str
    pipeline_root: str

    @property
    def description(self) -> str:
        """Text with a digest of the schedule."""
        content = [self.compiled, self.parameters, self.cron, self.service_account]
        canonical = json.dumps([*content, self.pipeline_root, MAX_CONCURRENCY], sort_keys=True)
        return f"{_DIGEST_MARK}{hashlib.sha256(canonical.encode()).hexdigest()}"


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("schedule", help="run a pipeline on a cluster by a schedule")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    apply = verbs.add_parser("apply", help="create a schedule, or change it to what is given here")
    add_pipeline_options(apply)
    apply.add_argument(
        "--name", dest="schedule", default="", help="default: the name of the pipeline"
    )
    apply.add_argument(
        "--cron", required=True, help="six fields, seconds first: '0 0 * * * *' is every hour"
    )
    add_options(apply)
    apply.set_defaults(command=_apply)
    listing = verbs.add_parser("list", help="list the schedules of the experiment")
    add_options(listing)
    listing.set_defaults(command=_list)
    for verb, text in (
        ("pause", "start no more runs"),
        ("resume", "start runs again; missed runs are not repeated"),
        ("remove", "delete a schedule; its runs stay"),
    ):
        changing = verbs.add_parser(verb, help=text)
        changing.add_argument("schedule", metavar="NAME")
        add_options(changing)
        changing.set_defaults(command=_change, verb=verb)


class Schedules:
    """The schedules of an experiment."""

    def __init__(self, client: Any, *, experiment: str, namespace: str) -> None:
        self._client = client
        with contextlib.redirect_stdout(io.StringIO()):
            self._experiment_id = client.create_experiment(
                experiment, namespace=namespace or None
            ).experiment_id

    def find(self, name: str = "") -> list[Any]:
        """Return the recurring runs of a name, or all; the oldest first."""
        return [run for run in self._pages() if not name or run.display_name == name]

    def apply(self, schedule: Schedule) -> str:
        """Create or replace the schedule of this name; returns what was done.

        A paused schedule stays paused. Two schedules of one name would both start runs, so the old
        one is paused before the new one is created, and deleted afterwards. If this process dies in
        between, the old one stays paused, or beside the new one until the next call removes it.
        """
        there = self.find(schedule.name)
        same = [run for run in there if run.description == schedule.description][:1]
        enabled = [run for run in there if is_enabled(run)]
        is_on = is_enabled(same[0]) if same else bool(enabled) or not there
        if not same:
            with self._pausing(enabled, replacement=schedule):
                self._create(schedule, is_enabled=is_on)
        for run in there:
            if run not in same:
                self._client.delete_recurring_run(run.recurring_run_id)
        done = "unchanged" if same else "replaced" if there else "created"
        return done if is_on else f"{done}, paused: resume it to start runs"

    def change(self, name: str, verb: str) -> None:
        """Pause, resume or remove a schedule.

        Raises:
            ClusterError: There is none of that name.
        """
        there = self.find(name)
        if not there:
            known = sorted({str(run.display_name) for run in self.find()})
            raise ClusterError(
                f"schedule must be one of {', '.join(known) or 'none'}, got {name}. List them."
            )
        action = {
            "pause": self._client.disable_recurring_run,
            "resume": self._client.enable_recurring_run,
            "remove": self._client.delete_recurring_run,
        }[verb]
        for run in there:
            action(run.recurring_run_id)

    @contextlib.contextmanager
    def _pausing(self, runs: Sequence[Any], *, replacement: Schedule) -> Iterator[None]:
        """Pause schedules; resume them if the new one cannot be created."""
        try:
            for run in runs:
                self._client.disable_recurring_run(run.recurring_run_id)
            yield
        except BaseException:
            # The request may have succeeded although its answer was lost.
            made = [run.description for run in self.find(replacement.name)]
            if replacement.description not in made:
                for run in runs:
                    self._client.enable_recurring_run(run.recurring_run_id)
            raise

    def _create(self, schedule: Schedule, *, is_enabled: bool) -> None:
        with compiled_file(schedule.compiled) as path:
            self._client.create_recurring_run(
                self._experiment_id,
                schedule.name,
                description=schedule.description,
                cron_expression=schedule.cron,
                max_concurrency=MAX_CONCURRENCY,
                no_catchup=True,
                params=dict(schedule.parameters),
                pipeline_package_path=path,
                enabled=is_enabled,
                pipeline_root=schedule.pipeline_root or None,
                service_account=schedule.service_account or None,
            )

    def _pages(self) -> Iterator[Any]:
        token = ""
        while True:
            page = self._client.list_recurring_runs(
                page_token=token,
                page_size=_PAGE_SIZE,
                sort_by="created_at",
                experiment_id=self._experiment_id,
            )
            yield from page.recurring_runs or ()
            token = page.next_page_token
            if not token:
                return


def is_enabled(run: Any) -> bool:
    """Whether a recurring run starts runs."""
    return str(run.mode) == "ENABLE"


def _apply(options: argparse.Namespace) -> int:
    pipeline = find_pipeline(options.name)
    target = cluster_target_of(options)
    arguments = parse_arguments(pipeline, options.assignments)
    check_arguments(pipeline, arguments)
    schedule = Schedule(
        name=options.schedule or pipeline.kfp_name,
        compiled=pipeline.compiled(target),
        parameters=arguments,
        cron=_checked_cron(options.cron),
        service_account=options.service_account,
        pipeline_root=options.pipeline_root,
    )
    with _schedules(options) as schedules:
        sys.stdout.write(f"{schedule.name}: {schedules.apply(schedule)}\n")
    return 0


def _list(options: argparse.Namespace) -> int:
    with _schedules(options) as schedules:
        for run in schedules.find():
            cron = run.trigger.cron_schedule.cron if run.trigger.cron_schedule else "not by cron"
            state = "on" if is_enabled(run) else "paused"
            sys.stdout.write(f"{run.display_name}  {cron}  {state}  {run.recurring_run_id}\n")
    return 0


def _change(options: argparse.Namespace) -> int:
    with _schedules(options) as schedules:
        schedules.change(options.schedule, options.verb)
    sys.stdout.write(f"{options.schedule}: {options.verb}d\n")
    return 0


@contextlib.contextmanager
def _schedules(options: argparse.Namespace) -> Iterator[Schedules]:
    with wrap_api_errors(options):
        yield Schedules(
            connect(options), experiment=options.experiment, namespace=options.namespace
        )


def _checked_cron(cron: str) -> str:
    if not cron.startswith("@") and len(cron.split()) != NUM_CRON_FIELDS:
        raise ClusterError(
            f"--cron must have {NUM_CRON_FIELDS} fields, seconds first, got '{cron}'. Write it "
            "like '0 0 * * * *' (every hour)."
        )
    return cron
