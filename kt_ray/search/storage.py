"""Optuna storages of studies: SQLite, PostgreSQL and other databases, or a journal file.

A SQLite database has a write-ahead log if its filesystem supports one; `kt_ray._io.sqlite` says what survives what.
"""

from __future__ import annotations

import abc
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from kt_ray._compat.optuna import with_cache
from kt_ray._io import sqlite
from kt_ray._io.files import is_full
from kt_ray._io.text import first_line
from kt_ray._io.urls import in_memory, redacted, sqlite_path
from kt_ray.errors import StudyError

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOURNAL = "journal://"
PATIENCE = 600.0  # seconds that a search waits for a database that does not answer
TRIES = 10  # at making the tables, which another process may be making too
DAMAGED = ("malformed", "not a database", "file is encrypted", "disk image")  # SQLite about a database it cannot read


def open_storage(url: str, *, create: bool = True) -> RetryingStorage:
    """Return the Optuna storage at `url`: `sqlite:///PATH`, `postgresql://…`, `journal:///PATH`.

    With `create` false, a database in a directory that cannot be written is opened to be read. Raises StudyError in one
    line if the storage cannot be reached or is damaged, now or at any later call; with `create` false, also if there is
    none yet.
    """
    path = _file(url)
    if path is not None and not create and not path.exists():
        raise StudyError(f"no studies yet: {path} does not exist; `kt-ray search` or `kt-ray run` makes it")
    for attempt in range(TRIES):
        try:
            return RetryingStorage(_open(url, path, create), url, patience=0.0)  # type: ignore[abstract]
        except Exception as error:  # SQLAlchemy, database drivers and the operating system each raise their own
            reason = first_line(error)
            if attempt + 1 == TRIES or not any(
                word in reason for word in ("already exists", "locked", "UNIQUE", "unique")
            ):
                raise StudyError(f"the study storage {redacted(url)} cannot be opened: {redacted(reason)}") from None
            time.sleep(0.2)
    raise AssertionError


def open_retrying_storage(url: str) -> RetryingStorage:
    """Return the storage at `url` for a search: its calls wait up to `PATIENCE` for a database that does not answer.

    Raises StudyError as `open_storage` does, and for a database in memory, which would end with this process.
    """
    if in_memory(url):
        raise StudyError(f"the study storage {url} ends with this process; a search needs one that stays: name a file")
    return RetryingStorage(open_storage(url).inner, url)  # type: ignore[abstract]


def study_names(url: str) -> list[str]:
    """Return the names of the studies in the storage at `url`; none if there is no storage.

    Raises StudyError if it does not answer.
    """
    path = _file(url)
    if path is not None and not path.exists():
        return []
    return sorted(optuna.get_all_study_names(open_storage(url, create=False)))


@contextmanager
def quiet_optuna(least: int = optuna.logging.WARNING) -> Iterator[None]:
    """Keep Optuna from logging what is below `least` in a `with`, and leave the level that the user set as it was."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, least))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _file(url: str) -> Path | None:
    """Return the file of a storage that is one file."""
    return Path(url.removeprefix(JOURNAL)) if url.startswith(JOURNAL) else sqlite_path(url)


def _open(url: str, path: Path | None, create: bool) -> BaseStorage:
    if path is not None and create:
        path.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith(JOURNAL):
        return JournalStorage(JournalFileBackend(str(path)))
    with quiet_optuna():
        if path is None:
            storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        elif not create and (reader := sqlite.reader(path)):
            storage = RDBStorage(url, engine_kwargs={"creator": reader})
        else:
            storage = _open_sqlite(url, path)
    return with_cache(storage)


def _open_sqlite(url: str, path: Path) -> RDBStorage:
    sqlite.make(path, _write_tables, _is_filled)
    logged = sqlite.prepare(path)
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": sqlite.PATIENCE}})
    if logged:
        event.listen(storage.engine, "connect", _commit_without_waiting)
        storage.engine.dispose()  # connections made before
    return storage


def _write_tables(path: Path) -> None:
    RDBStorage("sqlite://", engine_kwargs={"creator": partial(sqlite3.connect, path), "poolclass": NullPool})


def _is_filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _commit_without_waiting(connection: sqlite3.Connection, record: object) -> None:
    """Let commits not wait for the disk: with a write-ahead log, the database stays whole all the same."""
    connection.execute("PRAGMA synchronous = NORMAL")


READING = (  # methods that read a study which is there: other errors than the database's are of its contents
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_all_trials",
)


def _forwarded(name: str) -> Callable[..., Any]:
    """Return the method `name` of a storage, retried."""

    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        call = partial(getattr(self.inner, name), *args, **kwargs)
        try:
            return self._retry(call, call)
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            if name not in READING:
                raise
            raise self._damaged(f"not readable: {type(error).__name__}: {first_line(error)}") from None

    return method


def _forwarding(kind: type[T]) -> type[T]:
    """Give `kind` the methods of an Optuna storage that it does not write out itself, each retried."""
    for name in (*BaseStorage.__abstractmethods__, "get_trial_id_from_study_id_trial_number", "get_best_trial"):
        if name not in vars(kind):
            setattr(kind, name, _forwarded(name))
    return abc.update_abstractmethods(kind)


@_forwarding
class RetryingStorage(BaseStorage):
    """An Optuna storage whose calls are retried with growing pauses for `patience` seconds, and raise StudyError then.

    A write may be done though its answer got lost: most can be repeated, and those that cannot check first whether they
    are done, which is possible with one driver per study (`kt_ray.search.lease`). A damaged database raises at once.
    """

    def __init__(self, inner: BaseStorage, url: str, patience: float = PATIENCE) -> None:
        self.inner, self._url, self._patience = inner, url, patience

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create one trial; mark those that lost answers left beside it as failed."""
        before = self.get_n_trials(study_id)

        def create() -> None:
            self.inner.create_new_trial(study_id, template_trial)

        def create_if_missing() -> None:
            if self.inner.get_n_trials(study_id) == before:
                create()

        self._retry(create, create_if_missing)
        # Optuna retries within its RDBStorage without checking: there may be several.
        *lost, made = self.get_all_trials(study_id, deepcopy=False)[before:]
        for trial in lost:
            self.set_trial_state_values(self._trial_id(study_id, trial), TrialState.FAIL)
        return self._trial_id(study_id, made)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial. A trial that an earlier try has brought into `state` is done."""

        def change() -> bool:
            return self.inner.set_trial_state_values(trial_id, state, values)

        def change_if_other() -> bool:
            return self.inner.get_trial(trial_id).state is state or change()

        return self._retry(change, change_if_other)

    def remove_session(self) -> None:
        self.inner.remove_session()

    def _trial_id(self, study_id: int, trial: FrozenTrial) -> int:
        return int(self.get_trial_id_from_study_id_trial_number(study_id, trial.number))

    def _retry(self, call: Callable[[], T], again: Callable[[], T]) -> T:
        """Return what `call` returns or, if the database did not answer it, `again`."""
        deadline = time.monotonic() + self._patience
        pause = 0.5
        while True:
            try:
                return call()
            except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError) as error:
                reason = redacted(first_line(error.__cause__ or error))
            except (UnicodeDecodeError, LookupError, ValueError) as error:
                if not _unreadable(error):
                    raise
                reason = f"not readable: {first_line(error)}"
                raise self._damaged(reason) from None
            if any(words in reason for words in DAMAGED):
                raise self._damaged(reason)
            fault = self._passing_fault(reason)
            left = deadline - time.monotonic()
            if left <= 0:
                raise StudyError(fault)
            logger.warning("%s; trying again in %.0f s, for %.0f s more", fault, pause, left)
            time.sleep(pause)
            pause = min(2 * pause, 30)
            call = again

    def _passing_fault(self, reason: str) -> str:
        """Return a line about a fault that may pass: a disk that is full, or a database that does not answer."""
        name, file = redacted(self._url), _file(self._url)
        if is_full(reason, file.parent if file else None):
            return f"the study storage {name} cannot be written: its disk is full ({reason}); free some space"
        return f"the study storage {name} does not answer: {reason}"

    def _damaged(self, reason: str) -> StudyError:
        return StudyError(
            f"the study storage {redacted(self._url)} is damaged ({reason}); restore a backup, or move it "
            "away and start anew"
        )


def _unreadable(error: Exception) -> bool:
    """Return whether `error` is of contents that no program has written, rather than of how the storage is used."""
    module = type(error).__module__
    if isinstance(error, UnicodeDecodeError) or module.startswith("json"):
        return True
    return isinstance(error, LookupError) and "enum" in str(error)  # SQLAlchemy about a state or direction
