"""One MLflow run a zoo build, a study and a trial, found again by tags that follow from what they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_ray._io.checksum import json_digest
from kt_ray._io.urls import redacted
from kt_ray.errors import TrackingError
from kt_ray.tracking.outbox import PENDING, Entry, Outbox
from kt_ray.tracking.runs import STUDY_ID, Input, Runs, Status
from kt_ray.tracking.store import StoreAway, check_tracking, probe, reaching
from kt_ray.tracking.view import run_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = ["Input", "Tracker", "check_tracking"]

logger = logging.getLogger(__name__)

BACK_OFF = (5.0, 60.0)  # seconds until a store that is away is asked again: first, at most; doubled each time


class Tracker:
    """MLflow runs of one experiment, written by the driver alone.

    `uri` is `sqlite:///PATH`, `postgresql://…` or an MLflow server's address; `artifact_root` is where a *new*
    experiment keeps its files (None: the server's or MLflow's default). Runs are found by tags, so a command that is
    run again goes on in the same runs.

    The store must answer when a command begins: TrackingError, in seconds, if it does not. If it goes away later, or
    refuses, runs, metrics, ends and inputs wait in the file `outbox` and are sent in order, once, when it takes them
    again: in this process or in the next one with the same file. A run that is deleted meanwhile is restored, or made
    anew if nothing of it is left. Files, figures and the registry need a store that answers.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None = None, outbox: Path | None = None) -> None:
        self.uri = uri
        self.experiment = experiment
        self._runs = Runs(uri, experiment, artifact_root)
        self._outbox = Outbox(outbox)
        self._ids: dict[str, str] = {}  # pending references and ids of runs that are gone, to run ids
        self._opened: dict[str, Entry] = {}  # what opened a run, by its id
        self._failures = 0
        self._try_again = 0.0
        self.deliver(now=True)

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client of the store."""
        return self._runs.client

    @property
    def experiment_id(self) -> str:
        return self._runs.experiment_id

    @property
    def waiting(self) -> int:
        """The number of entries that wait for a store that is away."""
        return len(self._outbox)

    def zoo_run(self, name: str, fingerprint: str, params: Mapping[str, Any] = {}, tags: Mapping[str, Any] = {}) -> str:
        """The run of building the zoo `name`; `fingerprint` tells it from another zoo that had the name before."""
        identity = {"kt_ray.kind": "zoo", "kt_ray.zoo": name, "kt_ray.build": fingerprint}
        return self._run(f"zoo {name}", identity, params, tags)

    def study_run(self, study: str, params: Mapping[str, Any] = {}, tags: Mapping[str, Any] = {}) -> str:
        """The parent run of `study`.

        With `kt_ray.study_id` among `tags`, only a run with the same id is the study's, or one that has none: a new
        study of an old name then gets a run of its own.
        """
        identity = {"kt_ray.kind": "study", "kt_ray.study": study}
        if STUDY_ID in tags:
            identity[STUDY_ID] = str(tags[STUDY_ID])
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
        return self._run(f"trial {lineage}", identity, params, tags)

    def _run(self, name: str, identity: dict[str, str], params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
        """The run's id, or while the store is away a reference that stands for it."""
        entry = {"do": "run", "as": PENDING + json_digest(identity)[:24], "name": name, "identity": identity}
        return self._send(entry | {"params": texts(params), "tags": texts(tags)})

    def log(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """One batch. What the run already has for a metric at `step` stays: a report repeated after a resume adds
        nothing."""
        values = {key: float(value) for key, value in metrics.items()}
        self._send({"do": "log", "run": run_id, "metrics": values, "step": step})

    def finish(self, run_id: str, status: Status, tags: Mapping[str, Any] = {}) -> None:
        """End the run. KILLED is a pruned or cancelled trial, FAILED one that died; `tags` say why."""
        self._send({"do": "finish", "run": run_id, "status": status, "tags": texts(tags)})

    @contextmanager
    def ending(self, run_id: str | None) -> Iterator[None]:
        """End the run, if there is one, where the `with` ends by an error: KILLED if a person or signal did it."""
        try:
            yield
        except BaseException as error:
            if run_id is not None:
                self.finish(run_id, "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise

    def log_inputs(self, run_id: str, inputs: Sequence[Input]) -> None:
        """Name the dataset and the zoo that a run reads; the same one twice is one."""
        self._send({"do": "inputs", "run": run_id, "inputs": [asdict(entry) for entry in inputs]})

    def _send(self, entry: Entry) -> str:
        """Do `entry` now, or leave it in the outbox. Returns the run's id or the reference that stands for it."""
        entry["time"] = int(time.time() * 1000)
        if self.deliver():
            try:
                return self._do(entry)
            except TrackingError as error:  # a search goes on without MLflow
                self._wait(error)
        self._outbox.put(entry)
        return str(entry["as"] if entry["do"] == "run" else entry["run"])

    def _do(self, entry: Entry) -> str:
        """Do `entry`; once more if its run had been deleted."""
        try:
            return self._write(entry)
        except StoreAway:
            raise
        except TrackingError:
            if not self._bring_back(entry.get("run")):
                raise
            return self._write(entry)

    def _write(self, entry: Entry) -> str:
        if entry["do"] == "run":
            identity = {key: self._ids.get(value, value) for key, value in entry["identity"].items()}
            run = self._runs.open(entry["name"], identity, entry["params"], entry["tags"], entry["time"])
            self._refer(entry["as"], run)
            self._opened[run] = entry
            return run
        run = self.run_id(entry["run"])
        if entry["do"] == "log":
            self._runs.log(run, entry["metrics"], entry["step"], entry["time"])
        elif entry["do"] == "finish":
            self._runs.finish(run, entry["status"], entry["tags"], entry["time"])
        elif entry["do"] == "inputs":
            self._runs.inputs(run, [Input(**fields) for fields in entry["inputs"]])
        return run

    def _refer(self, reference: str, run: str) -> None:
        """Let `reference`, and whatever stands for the same run, stand for `run`."""
        before = self._ids.get(reference)
        self._ids |= {other: run for other, known in self._ids.items() if known in (before, reference)}
        self._ids[reference] = run

    def _bring_back(self, reference: str | None) -> bool:
        """Restore the experiment or the run that was deleted, make a run anew that is gone; return whether one was."""
        if self._runs.restore_experiment():
            logger.warning("the MLflow experiment %s had been deleted; it is restored", self.experiment)
            return True
        if reference is None:
            return False
        run = self.run_id(reference)
        stage = self._runs.lifecycle_stage(run)
        if stage == "deleted":
            self._runs.restore(run)
            logger.warning("the MLflow run %s had been deleted; it is restored", run)
            return True
        entry = self._opened.get(run)
        if stage is not None or entry is None:
            return False
        self._refer(run, self._write(entry))
        logger.warning("the MLflow run %s is gone; what comes next is in a new one, %s", run, self.run_id(run))
        return True

    def deliver(self, *, now: bool = False) -> bool:
        """Send what waits, if anything does, unless it was tried just before (with `now`, then too).

        Returns whether nothing waits any more. Raises TrackingError if the store refuses what waits, with `now` alone.
        """
        if not self._outbox:
            return True
        if not now and time.monotonic() < self._try_again:
            return False
        sent = 0
        try:
            probe(self.uri)
            while self._outbox:
                self._do(self._outbox.entries[0])
                self._outbox.entries.popleft()
                sent += 1
        except StoreAway as away:
            self._wait(away)
            return False
        except TrackingError as error:
            if not now:
                self._wait(error)
                return False
            raise TrackingError(
                f"what waits in {self._outbox.path} cannot be sent ({error}); mend this, or remove the file"
            ) from None
        finally:
            if sent:
                self._name_runs()
                self._outbox.save()
        self._failures = 0
        logger.warning("MLflow at %s answers again; %d entries that waited are sent", redacted(self.uri), sent)
        return True

    def _name_runs(self) -> None:
        """Put run ids for references that are known now: a later process would not know them."""
        for entry in self._outbox.entries:
            if "run" in entry:
                entry["run"] = self._ids.get(entry["run"], entry["run"])
            else:
                entry["identity"] = {key: self._ids.get(value, value) for key, value in entry["identity"].items()}

    def _wait(self, error: TrackingError) -> None:
        first, most = BACK_OFF
        self._try_again = time.monotonic() + min(first * 2**self._failures, most)
        if self._failures == 0:
            where = f" in {self._outbox.path}" if self._outbox.path else ""
            logger.warning("%s; what it has not got waits%s and is sent later", error, where)
        self._failures += 1

    def arrived(self) -> None:
        """Raises TrackingError unless the store has everything."""
        if not self.deliver(now=True):
            kept = f" in {self._outbox.path}; the same command sends them" if self._outbox.path else ""
            raise TrackingError(f"MLflow at {redacted(self.uri)} does not answer; {self.waiting} entries wait{kept}")

    def run_id(self, reference: str) -> str:
        """MLflow's id of a run that was opened while the store was away; any other id as it is."""
        run = self._ids.get(reference, reference)
        if run.startswith(PENDING):
            raise TrackingError(f"no run is known for {reference!r}: it was opened by another process and not sent")
        return run

    def tag(self, run_id: str, tags: Mapping[str, Any]) -> None:
        self._keep(run_id, lambda run: self._runs.tag(run, texts(tags)))

    def log_artifact(self, run_id: str, path: Path, directory: str | None = None) -> None:
        """Copy the file at `path` to the run's artifacts, into `directory` there."""
        self._keep(run_id, lambda run: self.client.log_artifact(run, str(path), directory))

    def log_figure(self, run_id: str, figure: Figure, name: str) -> None:
        """A matplotlib figure as the artifact `name`, such as `figures/accuracy.png`."""
        self._keep(run_id, lambda run: self.client.log_figure(run, figure, name))

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """`text` as the artifact `name`, such as `evaluation.md` or `figures/search.html`."""
        self._keep(run_id, lambda run: self.client.log_text(run, text, name))

    def _keep(self, reference: str, write: Callable[[str], None]) -> None:
        """Write a file of the run, once more if it had been deleted."""
        self.arrived()
        for last in (False, True):
            try:
                with reaching(self.uri):
                    write(self.run_id(reference))
                return
            except StoreAway:
                raise
            except TrackingError:
                if last or not self._bring_back(reference):
                    raise

    def run_url(self, run_id: str) -> str:
        """The run's page: on the tracking server, or on the one that `kt-ray ui` starts."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/{run_page(self.experiment_id, self._ids.get(run_id, run_id))}"


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as MLflow keeps them: text."""
    return {key: str(value) for key, value in values.items()}
