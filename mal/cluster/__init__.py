"""Training jobs on a cluster: settings, and the objects that operators run."""

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
)
from mal.cluster.settings_file import read_job_settings
from mal.cluster.trainjob import build_trainjob

__all__ = [
    "Environment",
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
    "build_pytorchjob",
    "build_trainjob",
    "read_job_settings",
]
