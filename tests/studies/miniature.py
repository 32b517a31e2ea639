"""`miniature.yaml` run as a person runs it, in a process of its own or in this one, and what it must have made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import optuna
from mlflow.entities import Run
from optuna.trial import TrialState
from typer.testing import CliRunner

from kt_ray.cli import app
from kt_ray.search.samplers import ORDINAL

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
TRIALS = 5
ENDS = (TrialState.COMPLETE, TrialState.PRUNED)


def kt_ray(*arguments: str, workspace: Path, new_session: bool = False) -> subprocess.Popen[str]:
    """The command as a process of its own, as a person starts it."""
    environment = os.environ | {"KT_RAY_WORKSPACE": str(workspace), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "kt_ray", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=new_session,
    )


def finished(process: subprocess.Popen[str], seconds: float = 900) -> str:
    """What it printed, once it ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def said(*arguments: str, workspace: Path) -> str:
    """What the command prints in this process, with the Ray session that it has, once it ended well."""
    result = CliRunner().invoke(app, arguments, env={"KT_RAY_WORKSPACE": str(workspace)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def study_of(workspace: Path) -> optuna.Study:
    """The study in Optuna's storage."""
    return optuna.load_study(study_name="miniature", storage=f"sqlite:///{workspace / 'optuna.db'}")


def runs_of(workspace: Path) -> list[Run]:
    """Every run in MLflow."""
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kt_ray")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def assert_every_trial_once(workspace: Path) -> None:
    """Each lineage ended once in the study; each has one run in MLflow, with the same end."""
    trials = study_of(workspace).trials
    lineages: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in trials:
        assert trial.state is not TrialState.RUNNING
        if trial.state is TrialState.FAIL and ORDINAL not in trial.user_attrs:
            continue  # the driver died while it was being drawn: some of its values may be there
        lineages.setdefault(trial.system_attrs.get("failed_trial", trial.number), []).append(trial)
    ends = {lineage: [trial for trial in tries if trial.state in ENDS] for lineage, tries in lineages.items()}
    assert len(ends) == TRIALS
    assert all(len(trials) == 1 for trials in ends.values())
    runs = runs_of(workspace)
    parents = {run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") is None}
    children = [run for run in runs if run.info.run_id not in parents]
    assert len(children) == TRIALS
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= parents
    statuses = sorted(run.info.status for run in children)
    expected = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
    assert statuses == sorted(expected[trials[0].state] for trials in ends.values())
    assert {run.info.status for run in runs if run.info.run_id in parents} == {"FINISHED"}


def wait_until_searching(process: subprocess.Popen[str], workspace: Path, seconds: float = 400) -> None:
    """Until a trial ended and another runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if (workspace / "optuna.db").is_file():
            try:
                states = [trial.state for trial in study_of(workspace).trials]
            except Exception:  # the study is being made
                states = []
            if TrialState.RUNNING in states and any(state in ENDS for state in states):
                return
        time.sleep(0.05)
    raise AssertionError("the search did not begin")
