"""An experiment of Katib for one pipeline step: submitted once, watched, taken along at a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kinds import Phase
from mal.cluster.job_watch import DEFAULT_LIMITS, WaitLimits
from mal.cluster.katib import (
    EXPERIMENT_LABEL,
    EXPERIMENTS,
    INJECTION_LABEL,
    KIND,
    METRIC,
    TRIALS,
    KatibSearch,
    KatibTrial,
    experiment_kind,
    read_best,
    read_state,
    read_trial,
    trial_outputs,
)
from mal.cluster.pod import Object
from mal.cluster.refusals import ServerUnreachableError
from mal.cluster.settings import JobSettings
from mal.cluster.submission import Attempt, submit
from mal.errors import ClusterError

_MAX_REASONS = 3


@dataclass(frozen=True)
class FinishedExperiment:
    """An experiment with a best trial.

    Attributes:
        name: Of the experiment.
        namespace: Of the experiment.
        uid: Of the object.
        best: The best trial.
        trials: All trials.
    """

    name: str
    namespace: str
    uid: str
    best: KatibTrial
    trials: tuple[KatibTrial, ...]


def run_experiment(
    job: JobSettings,
    search: KatibSearch,
    *,
    run_id: str,
    client: ClusterClient,
    limits: WaitLimits = DEFAULT_LIMITS,
    tell: Callable[[str], None],
) -> FinishedExperiment:
    """Run the experiment and wait for its end; a retried step re-attaches to it or adopts it.

    SIGTERM and SIGINT delete it first and end the process with 143 or 130.

    Args:
        job: Of each trial; its name is the experiment's, and `outputs_uri` holds all trials.
        search: What is varied, and how often.
        run_id: Of the pipeline run; an experiment of another run is never touched.
        client: Of the cluster.
        limits: How long it may take until the first trial runs.
        tell: Takes one line at a time.

    Raises:
        ClusterError: It failed, no trial was measured, it was deleted, or the cluster refused it.
    """
    kind = experiment_kind(search)
    cancellation = Cancellation()

    def submit_and_watch() -> FinishedExperiment:
        attempt = submit(client, kind, job, run_id=run_id, cancellation=cancellation, tell=tell)
        cancellation.watch_over(attempt.deletion(client, kind))
        watch = _Watch(client, attempt, search, limits, tell)
        try:
            return watch.run()
        except ServerUnreachableError:
            raise  # the experiment goes on, for the step's next try
        except BaseException:
            watch.delete_unless_finished()
            raise
        finally:
            cancellation.release()

    return cancellation.run(submit_and_watch)


class _Watch:
    def __init__(
        self,
        client: ClusterClient,
        attempt: Attempt,
        search: KatibSearch,
        limits: WaitLimits,
        tell: Callable[[str], None],
    ) -> None:
        self._client, self._attempt, self._search = client, attempt, search
        self._limits, self._tell = limits, tell
        self._name, self._namespace = attempt.settings.name, attempt.settings.namespace
        self._title = f"{KIND} {self._namespace}/{self._name}"
        self._is_over = False
        self._told = ""
        self._started_s = time.monotonic()

    def run(self) -> FinishedExperiment:
        how = "submitted" if self._attempt.is_new else "is there already: waiting for it"
        self._tell(
            f"{self._title} {how}. See it with: kubectl -n {self._namespace} describe "
            f"{EXPERIMENTS.full_name} {self._name}"
        )
        while True:
            experiment, version = self._find()
            self._report(experiment)
            state = read_state(experiment)
            if state.is_finished:
                self._is_over = True
                return self._finish(experiment, state.phase, state.message)
            self._require_start(experiment)
            self._client.wait_for_change(
                EXPERIMENTS, self._namespace, self._name, version, self._limits.poll_interval_s
            )

    def delete_unless_finished(self) -> None:
        """Leave no experiment behind that nobody waits for."""
        if self._is_over:
            return
        try:
            self._client.delete(EXPERIMENTS, self._namespace, self._name, self._attempt.uid)
        except ClusterError as error:  # the reason to delete it matters more
            self._tell(str(error))

    def _find(self) -> tuple[Object, str]:
        listing = self._client.list_objects(
            EXPERIMENTS, self._namespace, fields={"metadata.name": self._name}
        )
        for found in listing.items:
            if found["metadata"]["uid"] == self._attempt.uid:
                return found, listing.version
        self._is_over = True
        raise ClusterError(
            f"{self._title} must stay until it ends, got deleted by somebody. Run the step again."
        )

    def _report(self, experiment: Object) -> None:
        """Tell the state of the trials in one line, whenever it changes."""
        status = experiment.get("status", {})
        counts = {
            word: status.get(field, 0)
            for word, field in (
                ("succeeded", "trialsSucceeded"), ("running", "trialsRunning"),
                ("pending", "trialsPending"), ("failed", "trialsFailed"),
                ("without metrics", "trialMetricsUnavailable"),
            )
        }  # fmt: skip
        words = [f"{number} {word}" for word, number in counts.items() if number]
        name, metric = read_best(experiment)
        best = f"; best {METRIC}={metric:.4f} of {name}" if name and metric is not None else ""
        line = f"{', '.join(words) or 'no trial yet'} of {self._search.num_trials} trials{best}"
        if line != self._told:
            self._tell(f"{self._title}: {line}")
        self._told = line

    def _require_start(self, experiment: Object) -> None:
        limit_s = self._limits.start_timeout_s
        is_started = bool(experiment.get("status", {}).get("trials"))
        if limit_s and not is_started and time.monotonic() - self._started_s > limit_s:
            raise ClusterError(
                f"{self._title} must start a trial within {limit_s} s, got none. Look whether "
                f"{EXPERIMENTS.brought_by} runs and what its log says. The experiment was deleted."
            )

    def _finish(self, experiment: Object, phase: Phase, message: str) -> FinishedExperiment:
        trials = self._read_trials()
        name, _ = read_best(experiment)
        best = next((trial for trial in trials if trial.name == name), None)
        if phase is Phase.FAILED or best is None or best.metric is None:
            raise ClusterError(self._failure(message, trials))
        self._tell(f"{self._title} succeeded: {METRIC}={best.metric:.4f} of {best.name}")
        return FinishedExperiment(self._name, self._namespace, self._attempt.uid, best, trials)

    def _read_trials(self) -> tuple[KatibTrial, ...]:
        found = self._client.list_objects(
            TRIALS, self._namespace, labels={EXPERIMENT_LABEL: self._name}
        ).items
        found.sort(key=lambda trial: trial["metadata"]["creationTimestamp"])
        return tuple(read_trial(trial, self._search.parameters) for trial in found)

    def _failure(self, message: str, trials: tuple[KatibTrial, ...]) -> str:
        ends = [
            f"{trial.name} {trial.end}: {trial.message}"
            for trial in trials
            if trial.end not in ("", "Succeeded")
        ]
        # Katib deletes the job of a trial that failed, and its pods with it.
        place = trial_outputs(self._attempt.settings.outputs_uri, "TRIAL")
        advice = f"The end of status.json in {place} says why."
        if any(trial.end == "MetricsUnavailable" for trial in trials):
            advice = (
                f"Label the namespace {INJECTION_LABEL}, so that Katib reads what trials print."
            )
        reason = message or "no trial was measured"
        shown = "".join(f"\n{end}" for end in ends[:_MAX_REASONS])
        return f"{self._title} failed: {reason.rstrip('.')}. {advice}{shown}"
