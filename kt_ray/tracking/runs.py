"""Runs of one MLflow experiment. Everything here may be done twice and counts once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from kt_ray._io.urls import sqlite_path
from kt_ray.errors import TrackingError
from kt_ray.tracking.database import ARTIFACT_ROOT
from kt_ray.tracking.provenance import provenance
from kt_ray.tracking.store import filter_text, open_store, reaching

if TYPE_CHECKING:
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then leaves out traces and prompts

STUDY_ID = "kt_ray.study_id"  # tag of a study's run: which study, of those that had its name

# MLflow's limits for one log_batch.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
MOST_RUNS = 50_000  # of one search


@dataclass(frozen=True)
class Input:
    """A dataset or zoo that a run read: `digest` is its fingerprint, `profile` a few plain facts about it."""

    name: str
    digest: str
    source: str
    context: str = "training"
    profile: str | None = None


class Runs:
    """Runs of the experiment `experiment` in the store at `uri`, found again by their tags.

    `artifact_root` is where a *new* experiment keeps its files. Times are milliseconds since 1970, as MLflow's:
    an entry sent twice with its own time is one entry. Raises TrackingError.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None) -> None:
        self.uri = uri
        self.client = open_store(uri)
        with reaching(uri):
            self.experiment_id = self._experiment(experiment, artifact_root)
        self._logged: dict[str, set[tuple[str, int]]] = {}

    def _experiment(self, name: str, artifact_root: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = f"{artifact_root.rstrip('/')}/{quote(name, safe='')}" if artifact_root else None
            path, tags = sqlite_path(self.uri), dict(EXPERIMENT_TAGS)
            if path is not None and artifact_root == (path.parent.absolute() / "artifacts").as_uri():
                tags[ARTIFACT_ROOT] = artifact_root
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)
                assert found is not None
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {name!r} has been deleted; restore it in the MLflow UI, "
                "or set another `project`"
            )
        return str(found.experiment_id)

    def open(
        self, name: str, identity: Mapping[str, str], params: Mapping[str, str], tags: Mapping[str, str], time: int
    ) -> str:
        """The id of the run with the tags `identity`: made if there is none, RUNNING again if there is one."""
        with reaching(self.uri):
            found = self.find(identity) or self._find_without_id(identity)
            if found is None:
                made = self.client.create_run(
                    self.experiment_id, start_time=time, run_name=name, tags=provenance() | dict(identity) | dict(tags)
                )
                run_id: str = made.info.run_id
                self._logged[run_id] = set()
                self._write(run_id, params, {})
                return run_id
            run_id = found.info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self._resume(found, params, provenance() | dict(tags))
            return run_id

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The oldest run of the experiment that carries all of `tags`, deleted ones apart."""
        return next(iter(self._search(tags, 1)), None)

    def _find_without_id(self, identity: Mapping[str, str]) -> Run | None:
        """The oldest run of a study of that name that belongs to no study yet: it was begun before there was one."""
        if STUDY_ID not in identity:
            return None
        named = {key: value for key, value in identity.items() if key != STUDY_ID}
        return next((run for run in self._search(named, MOST_RUNS) if STUDY_ID not in run.data.tags), None)

    def _search(self, tags: Mapping[str, str], most: int) -> list[Run]:
        quoted = {key: filter_text(value) for key, value in tags.items()}
        condition = " and ".join(f"tags.`{key}` = {value}" for key, value in quoted.items() if value)
        pages = MOST_RUNS if None in quoted.values() else most
        order = ["attributes.start_time ASC"]
        found = self.client.search_runs([self.experiment_id], condition, max_results=pages, order_by=order)
        return [run for run in found if tags.items() <= run.data.tags.items()][:most]

    def _resume(self, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write what is new. MLflow's parameters cannot change: a changed one becomes a tag `changed.NAME`."""
        old = run.data.params
        changed = {f"changed.{key}": value for key, value in params.items() if key in old and old[key] != value}
        new_tags = {key: value for key, value in (dict(tags) | changed).items() if run.data.tags.get(key) != value}
        self._write(run.info.run_id, {key: value for key, value in params.items() if key not in old}, new_tags)

    def _write(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        for batch in _batches([Param(key, value) for key, value in params.items()], PARAMS_A_BATCH):
            self.client.log_batch(run_id, params=batch)
        for batch in _batches([RunTag(key, value) for key, value in tags.items()], PARAMS_A_BATCH):
            self.client.log_batch(run_id, tags=batch)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        with reaching(self.uri):
            self._write(run_id, {}, tags)

    def lifecycle_stage(self, run_id: str) -> str | None:
        """Return "active" or "deleted"; None if there is no such run any more."""
        from mlflow.exceptions import MlflowException

        with reaching(self.uri):
            try:
                return str(self.client.get_run(run_id).info.lifecycle_stage)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def restore(self, run_id: str) -> None:
        with reaching(self.uri):
            self.client.restore_run(run_id)

    def restore_experiment(self) -> bool:
        """Bring the experiment back if it was deleted; return whether it was."""
        with reaching(self.uri):
            deleted = self.client.get_experiment(self.experiment_id).lifecycle_stage == "deleted"
            if deleted:
                self.client.restore_experiment(self.experiment_id)
            return deleted

    def log(self, run_id: str, metrics: Mapping[str, float], step: int, time: int) -> None:
        """One batch of metrics. What the run already has for a metric at `step` stays."""
        from mlflow.entities import Metric

        with reaching(self.uri):
            logged = self._steps(run_id)
            new = [Metric(key, value, time, step) for key, value in metrics.items() if (key, step) not in logged]
            for batch in _batches(new, METRICS_A_BATCH):
                self.client.log_batch(run_id, metrics=batch)
                logged.update((metric.key, step) for metric in batch)

    def _steps(self, run_id: str) -> set[tuple[str, int]]:
        """The (metric, step) pairs the run has, read from the store for runs that an earlier command began."""
        if run_id not in self._logged:
            keys = self.client.get_run(run_id).data.metrics
            self._logged[run_id] = {
                (key, metric.step) for key in keys for metric in self.client.get_metric_history(run_id, key)
            }
        return self._logged[run_id]

    def finish(self, run_id: str, status: Status, tags: Mapping[str, str], time: int) -> None:
        """End the run, with `tags` that say why."""
        with reaching(self.uri):
            self._write(run_id, {}, tags)
            self.client.set_terminated(run_id, status=status, end_time=time)
            self._logged.pop(run_id, None)

    def inputs(self, run_id: str, inputs: Sequence[Input]) -> None:
        """Name the datasets and zoos that a run reads."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(entry.name, entry.digest, "local", entry.source, profile=entry.profile),
                [InputTag("mlflow.data.context", entry.context)],
            )
            for entry in inputs
        ]
        with reaching(self.uri):
            self.client.log_inputs(run_id, datasets)


def _batches(entries: list[Any], size: int) -> list[list[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
