"""Studies in SQLite, a journal file and PostgreSQL: searched by drivers that die, and while the database is away."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from typer.testing import CliRunner

from kt_ray._io import sqlite
from kt_ray.cli import app
from kt_ray.errors import ConfigError, StudyError
from kt_ray.search import storage as storages
from kt_ray.search.storage import RetryingStorage, open_retrying_storage, open_storage, study_names
from kt_ray.search.study import SearchStudy
from kt_ray.search.summary import summaries, trial_rows
from tests.disks import small_disk
from tests.search.stand_in import study_config
from tests.search.test_study import SAMPLERS, Died, Raising, driver, outcome, searched
from tests.tracking.servers import POSTGRES, Postgres, postgres_server

CONFIG = study_config(trials=5, sampler=SAMPLERS[0])


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'psycopg[binary]')")
    with postgres_server(tmp_path_factory.mktemp("postgres") / "server") as server:
        yield server


def check_searched_by_drivers_that_die(url: str) -> None:
    """As in memory, though every driver opens the storage anew."""
    whole = searched(CONFIG, InMemoryStorage())
    for _ in range(2):
        with pytest.raises(Exception, match=r"^$"):
            driver(CONFIG, open_storage(url), dies_after=7)
    cut = driver(CONFIG, open_storage(url))
    assert outcome(cut) == outcome(whole)
    assert [trial.state for trial in cut.trials()].count(TrialState.FAIL) == 2
    assert study_names(url) == ["s"]


def test_sqlite(tmp_path: Path) -> None:
    check_searched_by_drivers_that_die(f"sqlite:///{tmp_path}/optuna.db")


@pytest.mark.parametrize(("local", "journal", "synchronous"), [(True, "wal", 1), (False, "delete", 2)])
def test_sqlite_commits_without_waiting_only_where_it_has_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, journal: str, synchronous: int
) -> None:
    monkeypatch.setattr(sqlite, "local", lambda path: local)
    url = f"sqlite:///{tmp_path}/optuna.db"
    for storage in (open_storage(url), open_storage(url, create=False)):
        with storage.inner._backend.engine.connect() as connection:  # type: ignore[attr-defined]
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == journal
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == synchronous


def test_a_journal_file(tmp_path: Path) -> None:
    check_searched_by_drivers_that_die(f"journal://{tmp_path}/deep/studies.log")


def test_postgresql(postgres: Postgres) -> None:
    check_searched_by_drivers_that_die(postgres.uri)


def test_a_search_waits_for_a_database_that_is_away(postgres: Postgres) -> None:
    storage = open_retrying_storage(postgres.uri)
    config = CONFIG.model_copy(update={"name": "away"})

    def absence() -> None:
        time.sleep(0.4)
        postgres.stop()
        time.sleep(2)
        postgres.start()

    absent = threading.Thread(target=absence)
    absent.start()
    began = time.monotonic()
    while absent.is_alive() or time.monotonic() - began < 4:  # some trials before, some across, some after the absence
        config = config.model_copy(
            update={"search": config.search.model_copy(update={"trials": config.search.trials + 1})}
        )
        study = driver(config, storage)
    absent.join()
    finished = [trial for trial in study.lineages().values() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == config.search.trials


class Failing(InMemoryStorage):
    """Fails its first calls as a database that is away does."""

    failures = 0

    def get_study_name_from_id(self, study_id: int) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise optuna.exceptions.StorageInternalError("gone")
        return "s"

    def get_all_studies(self) -> list[optuna.study._frozen.FrozenStudy]:
        raise ValueError("not the network")


def test_calls_are_tried_again_for_a_while(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing()
    failing.failures = 1
    enduring = RetryingStorage(failing, "postgresql://me:secret@host/db", patience=600.0)
    assert enduring.get_study_name_from_id(0) == "s"
    assert "does not answer: gone; trying again in" in caplog.text
    enduring = RetryingStorage(failing, "postgresql://me:secret@host/db", patience=0.0)
    failing.failures = 5
    with pytest.raises(StudyError, match=r"the study storage postgresql://me:\*\*\*@host/db does not answer: gone"):
        enduring.get_study_name_from_id(0)
    with pytest.raises(StudyError, match=r"is damaged .*not the network"):
        enduring.get_all_studies()


def test_a_full_disk_is_told_as_that_and_the_search_goes_on_with_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", kilobytes=700) as disk:
        storage = open_storage(f"sqlite:///{disk}/optuna.db")
        study = optuna.create_study(storage=storage, study_name="s")
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        large = "x" * 200_000
        with pytest.raises(StudyError, match=r"optuna.db cannot be written: its disk is full .*; free some space"):
            study.set_user_attr("large", large)
        monkeypatch.setattr(time, "sleep", lambda _: (disk / "ballast").unlink(missing_ok=True))
        enduring = RetryingStorage(storage.inner, f"sqlite:///{disk}/optuna.db", patience=600.0)
        enduring.set_study_user_attr(study._study_id, "large", large)
        assert "its disk is full" in caplog.text
        assert study.user_attrs["large"] == large


def test_processes_that_open_a_new_storage_at_once_all_succeed(tmp_path: Path) -> None:
    opened: list[BaseStorage] = []
    url = f"sqlite:///{tmp_path}/optuna.db"
    threads = [threading.Thread(target=lambda: opened.append(open_storage(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4


def test_reading_makes_no_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    assert study_names(url) == []
    with pytest.raises(StudyError, match=r"no studies yet: .*optuna\.db does not exist"):
        open_storage(url, create=False)
    assert not (tmp_path / "optuna.db").exists()


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a directory at another place, where nothing can be written, as on a read-only filesystem."""
    shown_at = tmp_path / "sealed"
    shown_at.mkdir()

    def seal(directory: Path) -> Path:
        bind = subprocess.run(["mount", "--bind", directory, shown_at], capture_output=True, check=False)
        if bind.returncode:
            pytest.skip("mounting a directory needs more rights than these")
        subprocess.run(["mount", "-o", "remount,bind,ro", shown_at], check=True)
        return shown_at

    yield seal
    subprocess.run(["umount", "--lazy", shown_at], capture_output=True, check=False)  # connections may be open


def test_a_storage_where_nothing_can_be_written_is_read(tmp_path: Path, sealed: Callable[[Path], Path]) -> None:
    whole = tmp_path / "workspace"
    url = f"sqlite:///{whole}/optuna.db"
    study = driver(CONFIG, open_storage(url))
    there = f"sqlite:///{sealed(whole)}/optuna.db"
    assert study_names(there) == ["s"]
    assert trial_rows(there, "s") == trial_rows(url, "s")
    study.ask()
    assert (whole / "optuna.db-wal").stat().st_size
    assert summaries(there)[0].running == 1  # what is in the log alone is seen


def test_commands_that_read_need_write_nothing(tmp_path: Path, sealed: Callable[[Path], Path]) -> None:
    whole = tmp_path / "workspace"
    storage = open_storage(f"sqlite:///{whole}/optuna.db")
    driver(CONFIG, storage)
    storage.inner._backend.engine.dispose()  # type: ignore[attr-defined]
    place = ["--workspace", str(sealed(whole))]
    commands = (["status"], ["trials", "s"], ["best", "s"], ["importance", "s"], ["pareto", "s"])
    for command in (*commands, ["report", "s", "--output", str(tmp_path / "s.html")]):
        result = CliRunner().invoke(app, [*command, *place])
        assert result.exit_code == 0, (command, result.exception)
    assert (tmp_path / "s.html").is_file()
    with pytest.raises(ConfigError, match=r"report\.html cannot be written: Read-only file system"):
        CliRunner().invoke(app, ["report", "s", *place], catch_exceptions=False)
    assert {path.name for path in whole.iterdir()} == {"optuna.db"}


def test_faults_are_one_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"^the study storage nonsense cannot be opened: .*$"):
        open_storage("nonsense")
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot be opened"):
        open_storage(f"sqlite:///{tmp_path}/file/optuna.db")


def test_a_search_loses_nothing_with_the_answer_to_any_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages.time, "sleep", lambda seconds: None)
    whole = outcome(searched(CONFIG, InMemoryStorage()))
    for writes in itertools.count(1):
        storage = InMemoryStorage()
        with contextlib.suppress(Died):
            driver(CONFIG, storage, dies_after=9)  # so that a trial waits to be asked again
        gone = Raising(storage, writes, optuna.exceptions.StorageInternalError("server closed the connection"))
        study = driver(CONFIG, RetryingStorage(cast(BaseStorage, gone), "postgresql://host/db"))
        assert outcome(study) == whole, f"the answer to write {writes} was lost"
        states = [trial.state for trial in study.trials()]
        assert TrialState.RUNNING not in states
        assert sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states) == CONFIG.search.trials
        if gone.writes > 0:
            break


def test_a_trial_that_optuna_made_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages.time, "sleep", lambda seconds: None)
    study = SearchStudy(CONFIG, open_retrying_storage(f"sqlite:///{tmp_path}/optuna.db"))
    engine = study.optuna._storage.inner._backend.engine  # type: ignore[attr-defined]
    commit = engine.dialect.do_commit

    def commit_without_an_answer(connection: Any) -> None:
        wrote = connection.in_transaction
        commit(connection)
        if wrote:
            engine.dialect.do_commit = commit
            raise sqlite3.OperationalError("server closed the connection")

    for number in (1, 3):
        engine.dialect.do_commit = commit_without_an_answer
        assert study.ask().number == number
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL, TrialState.RUNNING] * 2
    assert sorted(study.lineages()) == [1, 3]


def test_a_finished_trial_cannot_change(tmp_path: Path) -> None:
    study = SearchStudy(CONFIG, open_retrying_storage(f"sqlite:///{tmp_path}/optuna.db"))
    candidate = study.ask()
    assert not study.optuna._storage.set_trial_state_values(candidate.trial._trial_id, TrialState.RUNNING)
    study.optuna.tell(candidate.number, 0.0)
    for state in (TrialState.COMPLETE, TrialState.FAIL):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            study.optuna._storage.set_trial_state_values(candidate.trial._trial_id, state)
