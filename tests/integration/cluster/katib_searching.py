"""A search on Katib for tests; `python -m cluster.katib_searching` is a step's process."""

from __future__ import annotations

from collections.abc import Callable

from cluster.launching import JOB, LIMITS, RUN_ID
from mal.cluster import ClusterClient, Owner
from mal.cluster.experiment import FinishedExperiment, run_experiment
from mal.cluster.katib import KatibParameter, KatibSearch

SEARCH = KatibSearch(
    algorithm="tpe",
    parameters=(
        KatibParameter(
            "train.lr", "double", {"min": "1e-06", "max": "0.1", "distribution": "logUniform"}
        ),
        KatibParameter("train.crf_view", "categorical", {"list": ["student", "teacher"]}),
    ),
    num_trials=5,
    num_parallel=2,
    seed=3,
)
# `mal train` by a formula: best at a rate of 1e-3; says its arguments, and waits for the gate.
TRIAL_IMAGE = r"""
for word in "$@"; do
  case "$word" in train.lr=*) lr="${word#train.lr=}" ;; esac
  echo "argument <$word>"
done
while [ -n "$GATE" ] && [ ! -e "$GATE" ]; do sleep 0.05; done
awk -v lr="$lr" 'BEGIN {
  d = log(lr / 0.001) / log(10); if (d < 0) d = -d
  printf "12:00:01 epoch 1: mIoU=%.4f\n12:00:02 epoch 2: mIoU=%.4f\n", 0.5 - d / 10, 0.9 - d / 10
}'
"""


def search(
    log: Callable[[str], None],
    num_trials: int = SEARCH.num_trials,
    patience_s: float = 20,
    owner: Owner | None = None,
) -> FinishedExperiment:
    import dataclasses

    return run_experiment(
        JOB.replace(overrides=("dataset.window_rate=[1.3, 2.2]",), owner=owner),
        dataclasses.replace(SEARCH, num_trials=num_trials),
        run_id=RUN_ID,
        client=ClusterClient.connect(patience_s=patience_s),
        limits=LIMITS,
        log=log,
    )


if __name__ == "__main__":
    search(lambda line: print(line, flush=True))  # noqa: T201 - a step's log
