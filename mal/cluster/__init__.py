"""Training jobs on a cluster: their settings, their objects, and a launcher that runs them."""

from mal.cluster.backends import get_job_kind, register_job_kind
from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import JobKind
from mal.cluster.job_watch import FinishedJob, WaitLimits
from mal.cluster.launcher import job_name, run_job
from mal.cluster.pytorchjob import PYTORCHJOB, build_pytorchjob
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
from mal.cluster.step_pod import StepPod
from mal.cluster.trainjob import TRAINJOB, build_trainjob

__all__ = [
    "PYTORCHJOB", "TRAINJOB", "ClusterClient", "Environment", "FinishedJob", "JobKind",
    "JobSettings", "Lifetime", "Owner", "Placement", "Resources", "SecretKey", "Security",
    "StepPod", "Storage", "Toleration", "TrainingRuntime", "VolumeClaim", "WaitLimits",
    "build_pytorchjob", "build_trainjob", "get_job_kind", "job_name", "read_job_settings",
    "register_job_kind", "run_job",
]  # fmt: skip
