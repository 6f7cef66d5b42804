"""A pipeline step's process, for the tests of its end: `python -m cluster.step BACKEND`."""

import sys

from cluster.launching import JOB, LIMITS, RUN_ID
from mal.cluster import Backend, ClusterClient, run_job


def main() -> None:
    def tell(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a step's log

    run_job(
        JOB,
        backend=Backend(sys.argv[1]),
        run_id=RUN_ID,
        client=ClusterClient.connect(),
        limits=LIMITS,
        tell=tell,
    )


if __name__ == "__main__":
    main()
