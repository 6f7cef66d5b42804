"""Training jobs on a cluster: settings, and the objects that operators run."""

from mal.cluster.client import ClusterClient
from mal.cluster.launcher import Backend, FinishedJob, WaitLimits, job_name, run_job
from mal.cluster.pytorchjob import build_pytorchjob
from mal.cluster.settings import (
    Environment,
    JobSettings,
    Lifetime,
    Owner,
    Placement,
    Resources,
    SecretKey,
    Security,
    Storage,
    Toleration,
    TrainingRuntime,
    VolumeClaim,
    read_job_settings,
)
from mal.cluster.trainjob import build_trainjob

__all__ = [
    "Backend",
    "ClusterClient",
    "Environment",
    "FinishedJob",
    "JobSettings",
    "Lifetime",
    "Owner",
    "Placement",
    "Resources",
    "SecretKey",
    "Security",
    "Storage",
    "Toleration",
    "TrainingRuntime",
    "VolumeClaim",
    "WaitLimits",
    "build_pytorchjob",
    "build_trainjob",
    "job_name",
    "read_job_settings",
    "run_job",
]
