"""Studies as jobs of a Ray cluster, through its job server (the address of the Ray dashboard)."""

from kt_ray.jobs.client import job_server
from kt_ray.jobs.job import Job, follow, hint, jobs, logs, resume, stop

__all__ = [
    "Job",
    "follow",
    "hint",
    "job_server",
    "jobs",
    "logs",
    "resume",
    "stop",
]
