"""Studies as jobs of a Ray cluster: the file is checked here, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kt_ray.errors import ConfigError
from kt_ray.jobs.job import Command, Request
from kt_ray.jobs.job import submit as submit_job
from kt_ray.studies.permission import Permission
from kt_ray.studies.study_file import read_with_source


def submit(
    file: Path,
    address: str | None = None,
    *,
    workspace: str | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    code: bool = True,
    python: str = "python",
    command: Command = "run",
    permission: Permission | None = None,
) -> str:
    """Submit `kt-ray run FILE` as a job of the cluster whose job server is at `address`; its id.

    `workspace` is a path on the cluster (unset: there `KT_RAY_WORKSPACE`, else `~/kt-workspace`). `overrides` are
    those of `kt-ray run`. `environment` is set for the job and shown to whoever can list jobs, so secrets are refused.
    With `code`, this kt_ray travels with the job; without, the cluster's own is used. `python` is the cluster's.
    A study's code travels as text; the job may run what `permission` covers here.
    The `command` `check` asks the cluster's nodes instead of running the study (see `check_cluster`).
    Raises ConfigError for a wrong study file, StudyError where a job runs this study in this workspace already,
    ResourceError where the cluster does not answer.
    """
    config, source = read_with_source(file, overrides, permission=permission)
    if config.ray.address not in (None, "auto"):
        raise ConfigError("ray.address must be unset in a job, which runs on the cluster it is submitted to", str(file))
    request = Request(
        source.text(),
        [] if config.code else list(overrides),  # the text that has the code in it has them too
        workspace,
        dict(environment or {}),
        code,
        python,
        command,
        bool(config.code),
    )
    return submit_job(request, config.name, address)
