"""A pipeline step's process, for the tests of its end: `python -m cluster.step BACKEND`."""

import sys

from cluster.launching import JOB, LIMITS, RUN_ID
from mal.cluster import ClusterClient, get_job_kind, run_job


def main() -> None:
    def log(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a step's log

    run_job(
        JOB,
        kind=get_job_kind(sys.argv[1]),
        run_id=RUN_ID,
        client=ClusterClient.connect(),
        limits=LIMITS,
        log=log,
    )


if __name__ == "__main__":
    main()
