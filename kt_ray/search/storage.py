"""Where Optuna keeps studies: SQLite, PostgreSQL and other databases, or a journal file.

SQLite has a write-ahead log where its filesystem bears one; see `kt_ray._io.sqlite` for what then survives what.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from kt_ray._io import sqlite
from kt_ray._io.text import first_line
from kt_ray._io.urls import redacted
from kt_ray.errors import StudyError

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOURNAL = "journal://"
PATIENCE = 600.0  # seconds that a search waits for a database that is away
TRIES = 10  # at making the tables, which another process may be making too


def open_storage(url: str, *, create: bool = True) -> BaseStorage:
    """The Optuna storage at `url`: `sqlite:///PATH`, `postgresql://…`, `journal:///PATH`.

    With `create` false, one that lies where nothing can be written is opened to be read alone. Raises StudyError in
    one line where it cannot be reached; with `create` false, also where there is none yet.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = _file(url)
    if path is not None and not create and not path.exists():
        raise StudyError(f"no studies yet: {path} does not exist; `kt-ray search` or `kt-ray run` makes it")
    for attempt in range(TRIES):
        try:
            return _open(url, path, create)
        except Exception as error:  # SQLAlchemy, database drivers and the operating system each raise their own
            reason = first_line(error)
            if attempt + 1 == TRIES or not any(
                word in reason for word in ("already exists", "locked", "UNIQUE", "unique")
            ):
                raise StudyError(f"the study storage {shown(url)} cannot be opened: {reason}") from None
            time.sleep(0.2)
    raise AssertionError


def open_retrying_storage(url: str) -> BaseStorage:
    """The storage at `url` for a search: once it is open, calls wait for a database that is away for a while."""
    return cast(BaseStorage, RetryingStorage(open_storage(url), url))


def study_names(url: str) -> list[str]:
    """The studies in the storage at `url`, none where there is no storage. Raises StudyError if it does not answer."""
    path = _file(url)
    if path is not None and not path.exists():
        return []
    return sorted(optuna.get_all_study_names(open_storage(url, create=False)))


def shown(url: str) -> str:
    """A storage URL without its password."""
    return redacted(url)


def _file(url: str) -> Path | None:
    """The file behind a storage of one file."""
    for scheme in ("sqlite:///", JOURNAL):
        if url.startswith(scheme) and url != "sqlite:///:memory:":
            return Path(url.removeprefix(scheme))
    return None


def _open(url: str, path: Path | None, create: bool) -> BaseStorage:
    if path is not None and create:
        path.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith(JOURNAL):
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        return JournalStorage(JournalFileBackend(str(path)))
    if path is None:
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    elif not create and (reader := sqlite.reader(path)):
        storage = RDBStorage(url, engine_kwargs={"creator": reader})
    else:
        logged = sqlite.prepare(path)
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": sqlite.PATIENCE}})
        if logged:
            event.listen(storage.engine, "connect", _commit_without_waiting)
            storage.engine.dispose()  # connections made before
    # `get_storage` puts the cache in front that keeps asking fast with thousands of trials.
    return optuna.storages.get_storage(storage)


def _commit_without_waiting(connection: sqlite3.Connection, record: object) -> None:
    """With a write-ahead log, a commit need not wait for the disk for the database to stay whole."""
    connection.execute("PRAGMA synchronous = NORMAL")


class RetryingStorage:
    """A storage whose calls outlast an absence of the database: tried again with growing pauses for `PATIENCE`.

    An Optuna study takes it for the storage itself. A write may be done though its answer got lost: most can be
    repeated, and those that cannot look first whether they are done, which one driver a study (`search/lock.py`) can
    tell. Raises StudyError where the database stays away.
    """

    def __init__(self, storage: BaseStorage, url: str) -> None:
        self._storage = storage
        self._url = url

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        if not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def enduring(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(attribute, *args, **kwargs)
            return self._endure(call, call)

        return enduring

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """One trial more; what lost answers left beside it is told FAIL."""
        before = self.get_n_trials(study_id)

        def create() -> None:
            self._storage.create_new_trial(study_id, template_trial)

        def create_if_missing() -> None:
            if self._storage.get_n_trials(study_id) == before:
                create()

        self._endure(create, create_if_missing)
        # Optuna tries again within its RDBStorage, without looking: there may be several.
        *lost, made = self.get_all_trials(study_id, deepcopy=False)[before:]
        for trial in lost:
            self.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return int(made._trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's, where a trial that an earlier try has brought into `state` is done."""

        def change() -> bool:
            return self._storage.set_trial_state_values(trial_id, state, values)

        def change_if_other() -> bool:
            return self._storage.get_trial(trial_id).state is state or change()

        return self._endure(change, change_if_other)

    def _endure(self, call: Callable[[], T], again: Callable[[], T]) -> T:
        """What `call` returns, or where the database did not answer it, `again`."""
        deadline = time.monotonic() + PATIENCE
        pause = 0.5
        while True:
            try:
                return call()
            except (optuna.exceptions.StorageInternalError, DBAPIError, OSError) as error:
                reason = first_line(error.__cause__ or error)
                if time.monotonic() > deadline:
                    raise StudyError(f"the study storage {shown(self._url)} stays away: {reason}") from None
                logger.warning("the study storage does not answer (%s); trying again in %.0f s", reason, pause)
                time.sleep(pause)
                pause = min(2 * pause, 30)
                call = again
