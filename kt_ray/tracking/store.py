"""Opening MLflow's store: quietly, and with an answer in seconds where it cannot be reached."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kt_ray._io.files import is_full
from kt_ray._io.text import first_line
from kt_ray._io.urls import redacted, sqlite_path
from kt_ray.errors import TrackingError
from kt_ray.tracking.database import is_whole, prepare_database, repair_artifact_paths

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PASSING = ("locked", "busy", "unable to open database file", "disk I/O error", "Connection", "connection", "timed out")

PROBE_SECONDS = 8.0  # until a store counts as away; a busy server may take seconds to answer

# MLflow's own defaults wait four minutes for a server that is away; whoever sets these keeps their values.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of generative AI: eight processes and half a UI's start
}


class StoreAway(TrackingError):
    """The store does not answer now; the same call may succeed later."""


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow without telemetry, log lines, progress bars and warnings."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401  (its first import configures the loggers set here)

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into TrackingError in one line, into StoreAway if `uri` does not answer now."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    with quiet():
        try:
            yield
        except MlflowException as error:
            raise _explained(error.error_code, first_line(error), uri) from None
        except TrackingError:
            raise
        except (OperationalError, sqlite3.OperationalError, OSError) as error:  # requests' errors are OSErrors
            raise _unreached(first_line(error), uri) from None
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise TrackingError(
                f"MLflow's database {redacted(uri)} is damaged ({redacted(first_line(error))})"
            ) from None


def _unreached(reason: str, uri: str) -> TrackingError:
    """An error of a database or a connection as ours: only what may pass by itself is a StoreAway."""
    reason = redacted(reason)
    if is_full(reason):
        return StoreAway(f"MLflow at {redacted(uri)} cannot be written: its disk is full ({reason}); free some space")
    if not sqlite_path(uri) or any(words in reason for words in PASSING):
        return StoreAway(f"MLflow at {redacted(uri)} does not answer ({reason})")
    if "readonly" in reason or "Permission denied" in reason or "Read-only" in reason:
        return TrackingError(f"MLflow's database {redacted(uri)} cannot be written ({reason}); see its permissions")
    return TrackingError(
        f"MLflow's database {redacted(uri)} is damaged, or of another version ({reason}); move it away, or name "
        "another with storage.tracking"
    )


def _explained(code: str, reason: str, uri: str) -> TrackingError:
    """MLflow's error as ours. A server whose own database is away answers with an internal error."""
    if any(words in reason for words in (" error code 401", " error code 403", "Permission denied", "UNAUTHENTICATED")):
        return TrackingError(
            f"MLflow at {redacted(uri)} refused the request ({redacted(reason)}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, and let the server's --allowed-hosts name this host"
        )
    if "(sqlite3.OperationalError)" in reason:
        return _unreached(reason, uri)
    if "database schema" in reason:
        return TrackingError(
            f"MLflow's database {redacted(uri)} has the schema of another MLflow version "
            f"({reason.split('. ')[0]}); install the version that wrote it, or back it up and run "
            f"`mlflow db upgrade {redacted(uri)}`"
        )
    away = code == "TEMPORARILY_UNAVAILABLE" or reason.startswith("API request to")
    if away or (code == "INTERNAL_ERROR" and uri.startswith("http")):
        return StoreAway(f"MLflow at {redacted(uri)} does not answer ({redacted(reason)})")
    return TrackingError(f"MLflow at {redacted(uri)}: {redacted(reason)}")


def open_store(uri: str, *, make: bool = True) -> MlflowClient:
    """A client of the tracking store and registry at `uri`; with `make`, a new database gets its tables.

    Raises TrackingError within seconds where `uri` cannot be reached or is no store.
    """
    probe(uri)
    if not make and _is_new(uri):
        raise TrackingError(f"there is no MLflow database at {redacted(uri)} yet; `kt-ray run` makes one")
    with quiet():
        from mlflow import MlflowClient

        with reaching(uri):
            path = sqlite_path(uri)
            if path is not None and not prepare_database(path):
                _repair(path)
            client = MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
            return client


def _repair(path: Path) -> None:
    """Find the artifacts of a workspace that was moved or copied beside its database, and report that."""
    try:
        moved_from = repair_artifact_paths(path)
    except sqlite3.OperationalError as error:  # a directory that cannot be written, or a schema that MLflow refuses
        logger.debug("artifact paths in %s are not checked (%s)", path, error)
        return
    for root in moved_from:
        here = path.parent / "artifacts"
        logger.warning("this workspace was moved or copied: its artifacts are in %s now, not in %s", here, root)


def check_tracking(uri: str) -> None:
    """Raises TrackingError if `uri` has no MLflow store and none can be made there. Makes none."""
    probe(uri)
    if not _is_new(uri):
        open_store(uri)


def _is_new(uri: str) -> bool:
    """Return whether `uri` is a SQLite database that is yet to be made, or was cut short as it was made."""
    path = sqlite_path(uri)
    with reaching(uri):
        return path is not None and not is_whole(path)


def filter_text(value: str) -> str | None:
    """Return `value` quoted for a filter of MLflow's, which knows no escapes; None if it holds both kinds of quotes."""
    quote = next((quote for quote in ("'", '"') if quote not in value), None)
    return f"{quote}{value}{quote}" if quote else None


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """`uri` as MLflow's process-wide store, where it resolves `models:/…` whatever store its client has."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def probe(uri: str) -> None:
    """Raises StoreAway if nothing answers at `uri`, TrackingError where no MLflow store can be there."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        _probe_server(uri)
    elif parts.scheme == "sqlite":
        _probe_sqlite(uri)
    elif parts.scheme.split("+")[0] in ("postgresql", "mysql"):
        _probe_database(uri)
    else:
        raise TrackingError(
            f"tracking URI {uri!r} is neither sqlite:///PATH, postgresql://… nor the http(s):// address of an MLflow "
            "server; set storage.tracking to one of these"
        )


def _probe_database(uri: str) -> None:
    """MLflow itself would try ten times, for more than a minute and a half."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(uri)
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise TrackingError(
            f"no driver for {redacted(uri)} ({first_line(error)}); pip install 'psycopg[binary]'"
        ) from None
    url = engine.url
    port = url.port or (3306 if url.get_backend_name() == "mysql" else 5432)
    try:
        socket.create_connection((url.host or "localhost", port), timeout=PROBE_SECONDS).close()
        engine.connect().close()
    except (OSError, SQLAlchemyError) as error:
        raise StoreAway(
            f"no database answers at {redacted(uri)} ({first_line(error)}); start it, or name another with "
            "storage.tracking"
        ) from None
    finally:
        engine.dispose()


def _probe_server(uri: str) -> None:
    import requests

    try:
        response = requests.get(uri.rstrip("/") + "/health", timeout=PROBE_SECONDS)
    except requests.RequestException as error:
        reason = "no answer in time" if isinstance(error, requests.Timeout) else "connection failed"
        raise StoreAway(
            f"no MLflow server answers at {redacted(uri)} ({reason}); start it, or name another with storage.tracking"
        ) from None
    if response.status_code >= 500:
        raise StoreAway(f"the MLflow server at {redacted(uri)} answers with HTTP status {response.status_code}")


def _probe_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise TrackingError(f"{redacted(uri)} is no file, so it ends with this process; give sqlite:///PATH")
    try:
        if not path.parent.is_dir():
            raise sqlite3.OperationalError(f"no such directory: {path.parent}")
        if not path.exists() and os.access(path.parent, os.W_OK):
            return
        with closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreAway(f"MLflow's database {path} is locked by another program ({error})") from None
        raise TrackingError(
            f"MLflow's database {path} cannot be opened ({error}); see that it can be written"
        ) from None
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{path} is no MLflow database ({error}); name another with storage.tracking") from None
