"""The whole path in miniature, read back with the clients of what it wrote to: zoo, Optuna, MLflow."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

import kt_ray as kt
from kt_ray.cli import app
from kt_ray.errors import KTError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.state_file import write_state
from kt_ray.studies.conclusion import CONCLUSION
from kt_ray.tracking.view import newest_page
from kt_ray.zoo.store import ZooStore
from tests.studies.miniature import (
    ENDS,
    MINIATURE,
    TRIALS,
    assert_every_trial_once,
    finished,
    kt_ray,
    runs_of,
    said,
    study_of,
    wait_until_searching,
)


def test_the_whole_path(finished_workspace: Path) -> None:
    output = (finished_workspace / "output.txt").read_text()
    for words in ("trained target", "translated", "pruned block", "kt-ray ui", "kt-ray resume miniature", "optuna.db"):
        assert words in output
    zoo = ZooStore(str(finished_workspace / "zoos" / "miniature")).read()
    assert [len(zoo.where(split)) for split in ("train", "selection", "test")] == [4, 2, 2]
    assert_every_trial_once(finished_workspace)
    runs = runs_of(finished_workspace)
    zoo_runs = [run for run in runs if run.data.tags.get("kt_ray.zoo_fingerprint") and "members" in run.data.metrics]
    assert len(zoo_runs) == 1
    client = mlflow.MlflowClient(f"sqlite:///{finished_workspace / 'mlflow.db'}")
    champion = client.get_model_version_by_alias("kt-translator", "champion")
    study = next(run for run in runs if "test_mean" in run.data.metrics)
    assert champion.tags["kt_ray.test_accuracy"] == repr(study.data.metrics["test_mean"])
    assert f"on zoo {zoo.fingerprint}, 2 selection members, 100 selection images, " in champion.description
    assert zoo.fingerprint == champion.tags["kt_ray.zoo_fingerprint"]
    figures = {file.path for file in client.list_artifacts(study.info.run_id, "figures")}
    assert figures == {f"figures/{name}.png" for name in ("accuracy", "members", "confusion")}
    inputs = {entry.dataset.name for entry in study.inputs.dataset_inputs}
    assert inputs == {"mnist5k", "miniature"}
    assert newest_page(client).endswith("viewStateShareKey=miniature")


def test_run_again_does_nothing(finished_workspace: Path) -> None:
    before = len(study_of(finished_workspace).trials), len(runs_of(finished_workspace))
    assert "is finished: nothing to do" in said("run", str(MINIATURE), workspace=finished_workspace)
    assert (len(study_of(finished_workspace).trials), len(runs_of(finished_workspace))) == before


@pytest.mark.slow
def test_a_run_killed_before_its_report_was_kept_is_not_finished(finished_workspace: Path) -> None:
    def reports() -> list[Path]:
        return list((finished_workspace / "artifacts").rglob("report.html"))

    (before,) = reports()
    before.unlink()
    (finished_workspace / "studies" / "miniature" / CONCLUSION).unlink()
    die = (
        "import os; from kt_ray.cli import main; from kt_ray.tracking.tracker import Tracker; "
        "Tracker.log_artifact = lambda *arguments: os._exit(9); main()"
    )
    command = [sys.executable, "-c", die, "run", str(MINIATURE), "--workspace", str(finished_workspace)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 9
    assert reports() == []
    output = finished(kt_ray("run", str(MINIATURE), workspace=finished_workspace))
    assert "nothing to do" not in output
    assert reports() == [before]


def test_reading_commands(finished_workspace: Path) -> None:
    place = ["--workspace", str(finished_workspace), "--format", "json"]
    read = {}
    for name, arguments in {
        "status": ["status"],
        "trials": ["trials", "miniature"],
        "best": ["best", "miniature"],
        "pareto": ["pareto", "miniature"],
        "importance": ["importance", "miniature"],
        "info": ["zoo", "info", "miniature"],
    }.items():
        result = CliRunner().invoke(app, [*arguments, *place])
        assert result.exit_code == 0, result.output
        read[name] = json.loads(result.output)
    assert len(read["trials"]) == TRIALS
    assert read["status"][0]["name"] == "miniature"
    best = max(trial["value"] for trial in read["trials"] if trial["state"] == "COMPLETE")
    assert read["best"]["value"] == best
    assert read["info"]["members"] == {"test": 2, "selection": 2, "train": 4}
    study = kt.open_study("miniature", finished_workspace)
    assert (study.trials(), study.best(), study.pareto()) == (read["trials"], read["best"], read["pareto"])
    assert (study.importance(), study.export(finished_workspace / "trials.csv")) == (read["importance"], TRIALS)
    assert CliRunner().invoke(app, ["zoo", "verify", "miniature", *place[:2]]).exit_code == 0


def test_translate_with_the_champion(finished_workspace: Path, tmp_path: Path) -> None:
    large = PaperArchitecture("basic_to_simple").source_network()
    write_state(tmp_path / "large.safetensors", large.state_dict())
    arguments = ["translate", "models:/kt-translator@champion", str(tmp_path / "large.safetensors")]
    arguments += ["-o", str(tmp_path / "small.safetensors"), "--workspace", str(finished_workspace)]
    result = CliRunner().invoke(app, [*arguments, "--dataset", "mnist5k"])
    assert result.exit_code == 0, result.output
    assert "115,248" in result.output
    small = read_state(tmp_path / "small.safetensors")
    assert small["stem.conv.weight"].equal(large.stem.conv.weight.data)


def test_a_champion_is_chosen_by_what_its_weights_reach_on_selection(finished_workspace: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "models:/kt-translator@champion", "miniature", "--workspace", str(finished_workspace)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "evaluation")])
    assert result.exit_code == 0, result.output
    assert "2 selection members × 100 selection images of mnist5k" in result.output
    written = set((tmp_path / "evaluation").iterdir())
    assert {f"wrote {path}" for path in written} == {line for line in result.output.splitlines() if "wrote" in line}
    assert {path.name for path in written} == {
        "evaluation.json",
        "evaluation.md",
        "accuracy.png",
        "members.png",
        "confusion.png",
    }
    rows = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["rows"]
    listing = ["champions", "--workspace", str(finished_workspace)]
    registered = json.loads(CliRunner().invoke(app, [*listing, "--format", "json"]).output)
    reached = next(row["mean"] for row in rows if row["name"] == "translated")
    assert registered[0]["selection_accuracy"] == pytest.approx(reached)
    assert registered[0]["protocol"].startswith("2 selection members, 100 selection images")
    table = CliRunner().invoke(app, listing).output
    assert f"{reached:.4f}" in table
    assert all(column in table for column in ("selection accuracy", "test accuracy"))


def test_a_study_starts_from_another_and_from_the_champion(finished_workspace: Path, ray_session: None) -> None:
    other = ["search", str(MINIATURE), "--set", "name=other", "--set", "search.trials=3"]
    other += ["--set", "space={training.learning_rate: {float: [0.00001, 0.1]}, loss.kl: {categorical: [0.5]}}"]
    said(*other, "--from", "miniature", "--from", "models:/kt-translator@champion", workspace=finished_workspace)
    trials = optuna.load_study(study_name="other", storage=f"sqlite:///{finished_workspace / 'optuna.db'}").trials
    before = [trial for trial in study_of(finished_workspace).trials if trial.state is TrialState.COMPLETE]
    found = [trial.params["training.learning_rate"] for trial in sorted(before, key=lambda trial: -trial.values[0])]
    tried = [trial.params for trial in trials if trial.state.is_finished()]  # further points wait
    assert [params["training.learning_rate"] for params in tried][: len(found)] == found[:3]
    assert {params["loss.kl"] for params in tried} == {0.5}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "nobody"], r"no study 'nobody' in sqlite:.*; there are: miniature"),
        (["--from", "miniature"], "the study miniature cannot start from itself; `kt-ray resume miniature` goes on"),
        (["--from", "models:/nobody@champion"], "nobody"),
        (["--from", "none.safetensors"], "no translator at 'none.safetensors'"),
        (
            ["--from", "miniature", "--set", "name=b", "--set", "space={loss.kl: {categorical: [0.5]}}"],
            "no complete trial of miniature has a parameter that lies in the space of this study",
        ),
    ],
)
def test_a_start_that_cannot_be(finished_workspace: Path, arguments: list[str], expected: str) -> None:
    with pytest.raises(KTError, match=expected):
        CliRunner().invoke(
            app, ["run", str(MINIATURE), *arguments, "-w", str(finished_workspace)], catch_exceptions=False
        )


@pytest.mark.slow  # tests/search: a driver dies after each of its writes, and ends on signals, in seconds
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_dies_is_resumed(tmp_path: Path, number: signal.Signals) -> None:
    longer = ["--set", "trial.training.epochs=6", "--set", "search.pruner={name: none}"]
    process = kt_ray("run", str(MINIATURE), *longer, workspace=tmp_path)
    wait_until_searching(process, tmp_path)
    process.send_signal(number)
    output = process.communicate(timeout=300)[0]
    if number is signal.SIGTERM:
        assert "resume: kt-ray resume miniature" in output
    half_drawn = study_of(tmp_path).ask()  # what a driver leaves that dies while it draws
    half_drawn.suggest_categorical("loss.block_output", [0.0, 1.0])
    ended = {trial.number for trial in study_of(tmp_path).trials if trial.state in ENDS}
    finished(kt_ray("run", str(MINIATURE), *longer, workspace=tmp_path))
    assert_every_trial_once(tmp_path)
    assert ended <= {trial.number for trial in study_of(tmp_path).trials if trial.state in ENDS}


def test_a_budget_that_ends_a_search_is_named(finished_workspace: Path, tmp_path: Path, ray_session: None) -> None:
    workspace = Path(shutil.copytree(finished_workspace, tmp_path / "workspace"))
    output = said("resume", "miniature", "--add", "1", "--hours", "1e-9", "--accept-weak", workspace=workspace)
    assert "the search ends before its 6 trials: search.hours=1e-09 are used up" in output
    assert len(study_of(workspace).trials) == TRIALS
