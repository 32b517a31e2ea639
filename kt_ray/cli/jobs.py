"""`kt-ray submit` and `kt-ray jobs`: studies as jobs of a Ray cluster."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from kt_ray.cli.options import AllowCode, AllowInclude, File, Format, Set
from kt_ray.cli.output import say, show

app = typer.Typer()
jobs = typer.Typer(help="Jobs of kt-ray on a Ray cluster: list, logs, stop, resume.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's job server, such as http://HEAD:8265; RAY_ADDRESS if unset."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `kt-ray jobs list` shows it.")]
Detach = Annotated[bool, typer.Option("--detach", help="Do not follow the log.")]


@app.command()
def submit(
    file: File,
    address: Address = None,
    overrides: Set = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", metavar="DIR", help="A directory on the cluster.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the kt_ray that the cluster has instead of sending this one.")
    ] = False,
    python: Annotated[str, typer.Option(help="The cluster's Python.")] = "python",
    detach: Detach = False,
    allow_code: AllowCode = False,
    allow_include: AllowInclude = None,
) -> None:
    """Run a study as a job of a Ray cluster and follow it; exit status is the job's. Ctrl-C only stops following."""
    from kt_ray.studies.permission import Permission
    from kt_ray.studies.spaces import locate
    from kt_ray.studies.submission import submit as submit_job

    job = submit_job(
        locate(file),
        address,
        workspace=workspace,
        overrides=overrides or (),
        code=not installed,
        python=python,
        permission=Permission.at(given=allow_code, includes=allow_include),
    )
    _attend(job, address, detach)


@jobs.command("list")
def list_jobs(address: Address = None, format_: Format = "table") -> None:
    """List the jobs of kt-ray that the cluster remembers, the newest first."""
    from kt_ray.jobs.job import jobs as known

    rows = [asdict(job) for job in known(address)]
    show(rows, rows, format_, "jobs")


@jobs.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    from kt_ray.jobs.job import logs as printed

    if follow:
        _attend(job, address, detach=False)
    else:
        say(printed(job, address))


@jobs.command()
def stop(job: JobId, address: Address = None) -> None:
    """Send a job SIGTERM, on which a search ends in order, and wait until it has."""
    from kt_ray.jobs.job import stop as stop_job

    ended = stop_job(job, address)
    say(f"{job}: {ended.status}\nnext: kt-ray jobs resume {shlex.quote(job)}")


@jobs.command()
def resume(job: JobId, address: Address = None, detach: Detach = False) -> None:
    """Submit again what a job was: the same study goes on from what it has."""
    from kt_ray.jobs.job import resume as resume_job

    _attend(resume_job(job, address), address, detach)


def _attend(job: str, address: str | None, detach: bool) -> None:
    """Follow a job to its end and end as it did; with `detach` or on Ctrl-C say how to come back to it."""
    from kt_ray.jobs.job import follow, hint

    say(f"job {job}")
    try:
        ended = None if detach else follow(job, address, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        ended = None
    if ended is None:
        say(hint(job, address))
        return
    raise typer.Exit(int(ended.status != "SUCCEEDED") if ended.exit_status is None else ended.exit_status)
