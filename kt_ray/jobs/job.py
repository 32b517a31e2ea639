"""Jobs of studies on a Ray cluster: submit, follow, list, stop, resume."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

from ray.job_submission import JobDetails, JobStatus

from kt_ray._compat.ray import TimedJobClient
from kt_ray.errors import ConfigError, ResourceError, StudyError
from kt_ray.jobs.client import connection, job_server, when_ready
from kt_ray.jobs.packing import STUDY_FILE, packed

STOP_SECONDS = 120  # Ray's own 3 s kill a search before it has told its study what to resume
HOME_WORKSPACE = "${KT_RAY_WORKSPACE:-$HOME/kt-workspace}"  # the job's working directory goes away with the job
EXIT_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}
SECRET = re.compile(r"PASSW|TOKEN|SECRET|CREDENTIAL|(^|_)KEY", re.IGNORECASE)
RECONNECTIONS = 5
JOB_VARIABLE = "KT_RAY_JOB"  # in a job: its id
ALLOW_CODE = "--allow-code"
Command = Literal["run", "check"]


@dataclass(frozen=True)
class Job:
    """A job of kt_ray on a cluster, past or present. Times are seconds since the epoch."""

    id: str
    status: str
    command: str
    study: str
    workspace: str
    started: float | None
    ended: float | None
    exit_status: int | None
    message: str

    @property
    def running(self) -> bool:
        """True if it has not ended."""
        return not JobStatus(self.status).is_terminal()


@dataclass(frozen=True)
class Request:
    """What a job runs, kept in its metadata: the text `study` of a study file that is checked, and how it is run.

    See `studies.submission.submit`. Raises ConfigError if a name in `environment` is a secret's.
    """

    study: str
    overrides: list[str]
    workspace: str | None
    environment: dict[str, str]
    code: bool
    python: str
    command: Command
    allow_code: bool = False  # of the study; jobs of earlier releases have none

    def __post_init__(self) -> None:
        secret = [name for name in self.environment if SECRET.search(name)]
        if secret:
            raise ConfigError(
                f"{', '.join(secret)} would be shown to whoever can list the cluster's jobs; set secrets in the "
                "environment of the cluster's nodes (Kubernetes secrets, systemd's EnvironmentFile)"
            )

    def entrypoint(self) -> str:
        """Return the job's shell command, with `exec`: the signal that stops a job reaches Python and no shell."""
        where = shlex.quote(self.workspace) if self.workspace else f'"{HOME_WORKSPACE}"'
        allowed = [ALLOW_CODE] if self.allow_code else []
        values = [shlex.quote(override) for override in self.overrides]
        if self.command == "check":
            arguments = ["kt_ray.studies", *allowed, STUDY_FILE, where, *values]
        else:
            sets = [f"--set {value}" for value in values]
            arguments = ["kt_ray run", *allowed, STUDY_FILE, "--workspace", where, *sets]
        return f"exec {shlex.quote(self.python)} -m {' '.join(arguments)}"


def submit(request: Request, study: str, address: str | None) -> str:
    """Run `request` of the study named `study` as a job; return the job's id.

    Raises StudyError if a job runs this study in this workspace already.
    """
    with connection(address) as client:
        for job in map(_job, client.list_jobs()):
            same = (job.command, job.study, job.workspace) == (request.command, study, request.workspace or "")
            if same and job.running and job.command == "run":
                raise StudyError(
                    f"study {study!r} is already run by job {job.id}; follow it with `kt-ray jobs logs {job.id} "
                    f"--follow`, or end it with `kt-ray jobs stop {job.id}`"
                )
        job_id = f"{study}-{time.strftime('%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), JOB_VARIABLE: job_id} | request.environment
        with packed(request.study, code=request.code) as directory:
            environment = {"working_dir": str(directory), "env_vars": variables}
            metadata = {"kt_ray": json.dumps(asdict(request)), "study": study}
            return when_ready(
                lambda: str(
                    client.submit_job(
                        entrypoint=request.entrypoint(),
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata=metadata,
                    )
                )
            )


def resume(job: str, address: str | None = None) -> str:
    """Submit again what `job` was: the same study file and options, the code of this kt_ray; the new job's id.

    The study, in the same storage, goes on from what it has. Raises as `submit` does.
    """
    with connection(address) as client:
        details = _details(client, job)
    metadata = details.metadata or {}
    return submit(Request(**json.loads(metadata["kt_ray"])), metadata["study"], address)


def jobs(address: str | None = None) -> list[Job]:
    """Every job of kt_ray that the cluster remembers, the newest first."""
    with connection(address) as client:
        found = [_job(details) for details in client.list_jobs() if "kt_ray" in (details.metadata or {})]
    return sorted(found, key=lambda job: job.started or 0.0, reverse=True)


def logs(job: str, address: str | None = None) -> str:
    """Return the text that `job` has printed so far."""
    with connection(address) as client:
        _details(client, job)
        return str(client.get_job_logs(job))


def stop(job: str, address: str | None = None) -> Job:
    """Send `job` SIGTERM, on which a search ends in order; return it when it has ended."""
    with connection(address) as client:
        _details(client, job)
        client.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS + 30
        while _job(_details(client, job)).running and time.monotonic() < deadline:
            time.sleep(0.5)
        return _job(_details(client, job))


def follow(job: str, address: str | None = None, write: Callable[[str], object] = print) -> Job:
    """Hand what `job` prints to `write`, piece by piece, until it ends; the job as it ended.

    A KeyboardInterrupt leaves the job running. Raises ResourceError if the cluster goes away meanwhile.
    """
    with connection(address) as client:
        _details(client, job)
        log, failures = _Log(write), 0
        while True:
            try:
                asyncio.run(_tail(client, job, log))
            except (OSError, RuntimeError, asyncio.TimeoutError):  # the connection broke; the job may go on
                failures += 1
            ended = _await_end(client, job, seconds=2.0)
            if ended is not None:
                with suppress(OSError, RuntimeError):  # its node may be gone with its log; how it ended is known
                    log.take(str(client.get_job_logs(job)), 0)  # what the tail lacks, where its connection broke
                return ended
            if failures > RECONNECTIONS:
                raise ResourceError(f"the connection to job {job} broke {failures} times; is the cluster still up?")


def hint(job: str, address: str | None = None) -> str:
    """Return the commands that follow, stop and resume a job that no one follows any more."""
    at, job = f" --address {shlex.quote(job_server(address))}", shlex.quote(job)
    return (
        f"job {job} goes on without this terminal\n"
        f"  follow it   kt-ray jobs logs {job} --follow{at}\n"
        f"  stop it     kt-ray jobs stop {job}{at}\n"
        f"  resume it   kt-ray jobs resume {job}{at}"
    )


class _Log:
    """A job's log on its way to `write`, each character once, however often it is read from its start."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._written = 0  # characters

    def take(self, piece: str, place: int) -> None:
        """Write what is new of `piece`, which begins at the character `place` of the log."""
        fresh = piece[max(0, self._written - place) :]
        if fresh:
            self._write(fresh)
            self._written += len(fresh)


async def _tail(client: TimedJobClient, job: str, log: _Log) -> None:
    """Hand the log to `log`, from its start, as it grows."""
    place = 0
    async for piece in client.tail_job_logs(job):
        log.take(piece, place)
        place += len(piece)


def _await_end(client: TimedJobClient, job: str, seconds: float) -> Job | None:
    """The job once it has ended; None if it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        seen = _job(_details(client, job))
        if not seen.running:
            return seen
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.2)


def _details(client: TimedJobClient, job: str) -> JobDetails:
    """The job `job`. Raises StudyError if the cluster has none of kt_ray by that name."""
    listed = client.list_jobs()
    found = {str(details.submission_id): details for details in listed if "kt_ray" in (details.metadata or {})}
    if job not in found:
        raise StudyError(f"no job {job!r} of kt_ray on this cluster; it has: {', '.join(sorted(found)) or 'none'}")
    return found[job]


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    request = json.loads(metadata.get("kt_ray", "{}"))
    status = JobStatus(details.status)
    ended_with = details.driver_exit_code if details.driver_exit_code is not None else EXIT_STATUS.get(status, 1)
    return Job(
        id=str(details.submission_id or details.job_id),
        status=str(status),
        command=request.get("command", ""),
        study=metadata.get("study", ""),
        workspace=request.get("workspace") or "",
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_status=ended_with if status.is_terminal() else None,
        message=((details.message or "").strip().splitlines() or [""])[0],
    )
