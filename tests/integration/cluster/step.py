"""A pipeline step's process, for the tests of its end: `python -m cluster.step BACKEND`."""

import os
import sys

from stand_in import NAMESPACE

from cluster.launching import JOB, LIMITS, RUN_ID
from mal.cluster import ClusterClient, get_job_kind, run_job
from mal.cluster.step_pod import StepPod


def main() -> None:
    def log(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a step's log

    client = ClusterClient.connect()
    step_pod, owner = None, None
    if name := os.environ.get("KFP_POD_NAME"):
        step_pod = StepPod(NAMESPACE, name, os.environ["KFP_POD_UID"])
        owner = step_pod.find_owner(client, log)
    run_job(
        JOB.replace(owner=owner),
        kind=get_job_kind(sys.argv[1]),
        run_id=RUN_ID,
        client=client,
        limits=LIMITS,
        log=log,
        step_pod=step_pod,
    )


if __name__ == "__main__":
    main()
