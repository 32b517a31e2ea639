"""A check that MLflow's artifacts can be kept from here: a small file is sent and read back by MLflow."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from kt_ray._compat.mlflow import artifact_repository
from kt_ray._io.scratch import scratch_directory
from kt_ray._io.text import first_line
from kt_ray._io.urls import redacted
from kt_ray.errors import TrackingError
from kt_ray.tracking.store import open_store, reaching

CONTENT = "probe"


def probe_artifacts(uri: str, root: str | None = None) -> None:
    """Write, read and delete a file at the artifact root `root`, else where the store at `uri` keeps new experiments'.

    Raises TrackingError if one of these fails.
    """
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")  # boto's own patience outlasts that of whoever waits for this
    with reaching(uri), scratch_directory("kt-ray-probe-") as directory:
        place = root or _default_root(uri)
        file = directory / f".kt-ray-probe-{secrets.token_hex(8)}"
        file.write_text(CONTENT)
        (back := directory / "back").mkdir()
        try:
            repository = artifact_repository(place, uri)
            repository.log_artifact(str(file))
            repository.download_artifacts(file.name, str(back))
            repository.delete_artifacts(file.name)
        except Exception as error:  # each kind of store has errors of its own
            reason = first_line(error)
            raise TrackingError(f"artifacts cannot be kept at {redacted(place)} ({reason})") from None
        if (back / file.name).read_text() != CONTENT:
            raise TrackingError(f"artifacts at {redacted(place)} come back changed")


def _default_root(uri: str) -> str:
    """Return where the store at `uri` puts the artifacts of its first experiment, made with it.

    Raises TrackingError for a directory that is not here: MLflow would make one on whichever machine writes.
    """
    place = str(open_store(uri).get_experiment("0").artifact_location)
    if urlsplit(place).scheme not in ("", "file"):
        return place
    directory = Path(place.removeprefix("file://")).parent
    if not (directory.is_absolute() and directory.is_dir()):
        raise TrackingError(
            f"MLflow at {redacted(uri)} keeps artifacts in the directory {directory} of whoever writes them, which is "
            "not here; start the server with --serve-artifacts, or name a root with storage.artifacts"
        )
    return str(directory)
