"""The page of a study: what its trials found and what its best model gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kt_ray._io.files import write_whole
from kt_ray.errors import ConfigError
from kt_ray.search.summary import load_study
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.report import report


def study_report(
    workspace: Workspace, study: str, evaluation: Mapping[str, Any] | None, output: Path | None = None
) -> Path:
    """Write the report of a study as one HTML page at `output`, else in the study's directory; return its path.

    Raises StudyError if there is no such study, ConfigError where the page cannot be written.
    """
    found = load_study(workspace.study_storage, study)
    path = output or workspace.study_directory(study) / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, report(found, evaluation).encode())
        return path
    except OSError as error:
        advice = "name another --output" if output else "make room or mend its directory, then run the command again"
        raise ConfigError(f"{path} cannot be written: {error.strerror}; {advice}") from None
