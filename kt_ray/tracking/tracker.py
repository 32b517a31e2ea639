"""One MLflow run a zoo build, a study and a trial, found again by tags that follow from what they are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from kt_ray.errors import TrackingError
from kt_ray.tracking.provenance import provenance
from kt_ray.tracking.store import open_store, reaching

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's limits for one log_batch.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100


@dataclass(frozen=True)
class Input:
    """A dataset or zoo that a run read: `digest` is its fingerprint, `profile` a few plain facts about it."""

    name: str
    digest: str
    source: str
    context: str = "training"
    profile: str | None = None


class Tracker:
    """MLflow runs of one experiment, written by the driver alone.

    `uri` is `sqlite:///PATH`, `postgresql://…` or an MLflow server's address; `artifact_root` is where a *new*
    experiment keeps its files (None: the server's or MLflow's default). Runs are found by tags, so a command that is
    run again goes on in the same runs. Raises TrackingError, in seconds, where the store does not answer.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None = None) -> None:
        self.uri = uri
        self.experiment = experiment
        self.client = open_store(uri)
        with reaching(uri):
            self.experiment_id = self._open_experiment(artifact_root)
        self._logged: dict[str, set[tuple[str, int]]] = {}

    def _open_experiment(self, artifact_root: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            location = f"{artifact_root.rstrip('/')}/{quote(self.experiment, safe='')}" if artifact_root else None
            try:
                return str(self.client.create_experiment(self.experiment, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(self.experiment)
                assert found is not None
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} has been deleted; restore it in the MLflow UI, "
                "or set another `project`"
            )
        return str(found.experiment_id)

    def zoo_run(self, name: str, fingerprint: str, params: Mapping[str, Any] = {}, tags: Mapping[str, Any] = {}) -> str:
        """The run of the zoo build `name` with `fingerprint`."""
        identity = {"kt_ray.kind": "zoo", "kt_ray.zoo": name, "kt_ray.zoo_fingerprint": fingerprint}
        return self._run(f"zoo {name}", identity, params, tags)

    def study_run(self, study: str, params: Mapping[str, Any] = {}, tags: Mapping[str, Any] = {}) -> str:
        """The parent run of `study`.

        With `kt_ray.study_id` among `tags`, only a run with the same id is the study's: a new study of an old name
        then gets a run of its own.
        """
        identity = {"kt_ray.kind": "study", "kt_ray.study": study}
        if "kt_ray.study_id" in tags:
            identity["kt_ray.study_id"] = str(tags["kt_ray.study_id"])
        return self._run(study, identity, params, tags)

    def trial_run(
        self,
        study_run_id: str,
        study: str,
        lineage: int,
        params: Mapping[str, Any] = {},
        tags: Mapping[str, Any] = {},
    ) -> str:
        """The child run of the trial whose first try was Optuna trial `lineage`; a retry goes on in it."""
        identity = {
            "kt_ray.kind": "trial",
            "kt_ray.study": study,
            "kt_ray.lineage": str(lineage),
            "mlflow.parentRunId": study_run_id,
        }
        return self._run(f"{study} trial {lineage}", identity, params, tags)

    def _run(self, name: str, identity: Mapping[str, str], params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """The run with the tags `identity`, made if there is none, RUNNING again if there is one."""
        with reaching(self.uri):
            found = self.find(identity)
            if found is None:
                created = self.client.create_run(
                    self.experiment_id, run_name=name, tags=provenance() | dict(identity) | texts(tags)
                )
                run_id: str = created.info.run_id
                self._logged[run_id] = set()
                self._write(run_id, texts(params), {})
                return run_id
            run_id = found.info.run_id
            self.client.update_run(run_id, status="RUNNING")
            self._resume(found, texts(params), provenance() | texts(tags))
            return run_id

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The oldest run of the experiment that carries all of `tags`, deleted ones apart."""
        condition = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
        found = self.client.search_runs(
            [self.experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None

    def _resume(self, run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Write what is new. MLflow's parameters cannot change, so a changed one is told by a tag `changed.NAME`."""
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

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """One batch. What the run already has for a metric at `step` stays: a report repeated after a resume adds
        nothing."""
        from mlflow.entities import Metric

        with reaching(self.uri):
            logged = self._steps(run_id)
            now = int(time.time() * 1000)
            new = [Metric(key, float(value), now, step) for key, value in metrics.items() if (key, step) not in logged]
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

    def finish(self, run_id: str, status: Status, tags: Mapping[str, Any] = {}) -> None:
        """End the run. KILLED is a pruned or cancelled trial, FAILED one that died; `tags` say why."""
        with reaching(self.uri):
            self._write(run_id, {}, texts(tags))
            self.client.set_terminated(run_id, status=status)
            self._logged.pop(run_id, None)

    def log_inputs(self, run_id: str, inputs: Sequence[Input]) -> None:
        """Name the dataset and the zoo that a run reads; the same one twice is one."""
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

    def log_artifact(self, run_id: str, path: Path, directory: str | None = None) -> None:
        """Copy the file at `path` to the run's artifacts, into `directory` there."""
        with reaching(self.uri):
            self.client.log_artifact(run_id, str(path), directory)

    def log_figure(self, run_id: str, figure: Figure, name: str) -> None:
        """A matplotlib figure as the artifact `name`, such as `figures/accuracy.png`."""
        with reaching(self.uri):
            self.client.log_figure(run_id, figure, name)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """`text` as the artifact `name`, such as `evaluation.md` or `figures/search.html`."""
        with reaching(self.uri):
            self.client.log_text(run_id, text, name)

    def run_url(self, run_id: str) -> str:
        """The run's page: on the tracking server, or on the one that `kt-ray ui` starts."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.experiment_id}/runs/{run_id}"


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as MLflow keeps them: text."""
    return {key: str(value) for key, value in values.items()}


def _quoted(value: str) -> str:
    if "'" in value:
        raise TrackingError(f"MLflow cannot search for {value!r}: leave out the quote")
    return value


def _batches(entries: list[Any], size: int) -> list[list[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
