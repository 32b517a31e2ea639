"""Write to the registry of translators: the alias `champion` moves only to one that is better on selection."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kt_ray._io.checksum import file_digest
from kt_ray._io.scratch import scratch_directory
from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.description import describe_study
from kt_ray.tracking.model import write_model
from kt_ray.tracking.registry import (
    CHAMPION,
    TAGS_SHA256,
    MeasuredOn,
    RegisteredTranslator,
    accuracies,
    champion_of,
    champions,
    fingerprint_tag,
    measured_on,
    reader,
    tags_digest,
    utc,
    versions_of,
)
from kt_ray.tracking.store import default_store, reaching
from kt_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

WEAKNESS = "kt_ray.weakness"  # tag of a version below a block that costs nothing: which one


@dataclass(frozen=True)
class Measured:
    """The measurements that decide between candidates: mean accuracies, and on what they were measured.

    `selection` decides (None: not measured), `test` is for people and decides nothing. `on` is a zoo or a dataset with
    this `fingerprint`, `protocol` says how (members, images and their fingerprint). `free` are mean accuracies, on the
    same selection members and images, of blocks that cost nothing, by name: the zero block and the unlearned ones.
    """

    on: MeasuredOn
    fingerprint: str
    protocol: str
    selection: float | None
    test: float
    free: Mapping[str, float] = field(default_factory=dict)

    @property
    def weakness(self) -> str:
        """The best of the free blocks, if it is better than the candidate; else nothing."""
        name = max(self.free, key=lambda name: self.free[name], default="")
        if not name or self.selection is None or self.selection >= self.free[name]:
            return ""
        return f"{self.selection:.2%} on selection is below the {name} ({self.free[name]:.2%}), which costs nothing"

    def tags(self) -> dict[str, str]:
        """These as tags of a version."""
        tags = {
            fingerprint_tag(self.on): self.fingerprint,
            "kt_ray.protocol": self.protocol,
            "kt_ray.test_accuracy": repr(float(self.test)),
        }
        if self.selection is not None:
            tags["kt_ray.selection_accuracy"] = repr(float(self.selection))
        if self.weakness:
            tags[WEAKNESS] = self.weakness
        return tags


@dataclass(frozen=True)
class Candidate:
    """A translator (or student) for the registry: its safetensors `file`, and the `module` that the file holds.

    `example` is a stack of source blocks, `evaluation` plain values for JSON, `card` the model card (Markdown),
    `run_id` the run of the trial that made it, and `dataset` the name of the images.
    """

    file: Path
    module: nn.Module
    example: State
    study: str
    trial: int
    run_id: str
    measured: Measured
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    dataset: str = ""

    @property
    def sha256(self) -> str:
        return file_digest(self.file)

    def tags(self) -> dict[str, str]:
        """Return the registry's tags of a candidate."""
        made = {"kt_ray.sha256": self.sha256, "kt_ray.study": self.study, "kt_ray.trial": str(self.trial)}
        tags = made | self.measured.tags() | ({"kt_ray.dataset": self.dataset} if self.dataset else {})
        return tags | {TAGS_SHA256: tags_digest(tags)}


@dataclass(frozen=True)
class ChampionResult:
    """The registered version, whether it is champion now, and the comparison that decided it.

    `uri` loads the champion, or this version if the model has no champion. `weakness` says which block that costs
    nothing is better.
    """

    version: int
    promoted: bool
    comparison: str
    uri: str = ""
    weakness: str = ""


def register_champion(
    tracker: Tracker, model_name: str, candidate: Candidate, *, accept_weak: bool = False
) -> ChampionResult:
    """Register `candidate` and make it champion if it beats the present one on selection.

    A champion of another zoo, dataset or protocol, or without the deciding accuracy, stays: the numbers cannot be
    compared. A candidate below a block that costs nothing becomes champion only with `accept_weak`. The same file is
    registered once.
    """
    tracker.arrived()
    version = register(tracker, model_name, candidate)
    client, tags, number = tracker.client, candidate.tags(), int(version.version)
    with reaching(tracker.uri):
        present = champion_of(client, model_name)  # only now: while a model was logged, others may have registered
        promoted, comparison = _compare(tags, present, number, accept_weak)
        if version.description != comparison and (promoted or not version.description):
            client.update_model_version(model_name, version.version, comparison)
        if promoted:
            client.set_registered_model_alias(model_name, CHAMPION, version.version)
    result = ChampionResult(
        version=number,
        promoted=promoted,
        comparison=comparison,
        uri=f"models:/{model_name}@{CHAMPION}" if promoted or present is not None else f"models:/{model_name}/{number}",
        weakness=candidate.measured.weakness,
    )
    describe_study(tracker, model_name, candidate, result)
    return result


def register(tracker: Tracker, model_name: str, candidate: Candidate) -> ModelVersion:
    """Return the version of the candidate's file, made if there is none.

    A model that an earlier try logged and did not register is registered.
    """
    client, tags = tracker.client, candidate.tags()
    with reaching(tracker.uri):
        version = _registered(client, model_name, candidate.sha256)
        if version is not None:
            return version
        run_id = tracker.run_id(candidate.run_id)
        model_id = _log_model(tracker, candidate, run_id, tags)
        with default_store(tracker.uri):
            return client.create_model_version(
                model_name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id, await_creation_for=30
            )


def promote(store: Tracker | str, model_name: str, version: int, reason: str = "") -> RegisteredTranslator:
    """Make `version` champion because a person says so; the reason joins its description.

    `store` is a tracker or a tracking URI.
    """
    client, uri = reader(store)
    known = {entry.version for entry in champions(store, model_name)}
    if version not in known:
        raise TrackingError(
            f"{model_name} has no version {version}; it has {', '.join(map(str, sorted(known))) or 'none'}"
        )
    with reaching(uri):
        present = champion_of(client, model_name)
        before = f" in place of version {present.version}" if present else ""
        description = client.get_model_version(model_name, str(version)).description or ""
        note = f"Promoted by hand on {utc(time.time()).date()}{before}{': ' + reason if reason else ''}."
        client.update_model_version(model_name, str(version), f"{description}\n{note}".strip())
        client.set_registered_model_alias(model_name, CHAMPION, str(version))
    return next(entry for entry in champions(store, model_name) if entry.version == version)


def _registered(client: MlflowClient, model_name: str, digest: str) -> ModelVersion | None:
    """The version of the translator file with this SHA-256; the registered model is made if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name, description="Translators: source block parameters to target ones.")
        return None
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = versions_of(client, model_name)
    return next((version for version in versions if version.tags.get("kt_ray.sha256") == digest), None)


def _log_model(tracker: Tracker, candidate: Candidate, run_id: str, tags: Mapping[str, str]) -> str:
    """Return the id of a logged model of the trial's run."""
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    logged = _begun(client, tracker.experiment_id, candidate.sha256, run_id) or client.create_logged_model(
        tracker.experiment_id, "translator", source_run_id=run_id, tags=dict(tags), model_type="translator"
    )
    if str(logged.status) == "READY":
        return str(logged.model_id)
    with scratch_directory() as scratch:
        directory = scratch / "model"
        write_model(
            directory,
            candidate.module,
            candidate.example,
            candidate.file,
            candidate.card,
            logged.model_id,
            run_id,
            dict(tags),
        )
        (directory / "evaluation.json").write_text(json.dumps(candidate.evaluation, indent=2), encoding="utf-8")
        client.log_model_artifacts(logged.model_id, str(directory))
    outputs = client.get_run(run_id).outputs
    if logged.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _begun(client: MlflowClient, experiment_id: str, digest: str, run_id: str) -> LoggedModel | None:
    """The model of this file that an earlier try logged, whole or not, and did not register."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`kt_ray.sha256` = '{digest}'")
    return next((model for model in found if model.source_run_id == run_id), None)


def _compare(
    tags: Mapping[str, str], present: ModelVersion | None, version: int, accept_weak: bool
) -> tuple[bool, str]:
    """Return whether version `version` with `tags` shall be champion, and the reason in words."""
    trial = f"study {tags['kt_ray.study']}, trial {tags['kt_ray.trial']}"
    what = f"version {version} (mean accuracy {_shown(tags)}, {trial})"
    on, fingerprint = measured_on(tags)
    where = f"{on} {fingerprint}, {tags['kt_ray.protocol']}"
    if present is not None and int(present.version) == version:
        return True, present.description or f"Champion: {what} on {where}."
    weakness, accepted = tags.get(WEAKNESS, ""), ""
    if weakness and not accept_weak:
        return False, (
            f"Too weak: {what} on {where}: {weakness}. `kt-ray promote` moves the alias by hand, --accept-weak lets a "
            "run do it."
        )
    if weakness:
        accepted = f" It is weak, which was accepted: {weakness}."
    if present is None:
        return True, f"First champion: {what} on {where}.{accepted}"
    against = f"version {present.version} ({_shown(present.tags)}, study {present.tags.get('kt_ray.study', '?')})"
    by_hand = "`kt-ray promote` moves the alias by hand."
    score, old = accuracies(tags)[0], accuracies(present.tags)[0]
    if score is None or old is None:
        lacking = version if score is None else present.version
        reason = f"version {lacking} has no accuracy on selection, which decides"
        return False, f"Not compared: {what} with the champion {against}: {reason}. {by_hand}"
    for word, ours, theirs in (
        (on, fingerprint, measured_on(present.tags)[1]),
        ("selection protocol", tags["kt_ray.protocol"], present.tags.get("kt_ray.protocol")),
    ):
        if ours != theirs:
            return False, (
                f"Not compared: {what} was measured on the {word} {ours}, the champion {against} on "
                f"{theirs or 'another'}. {by_hand}"
            )
    if score > old:
        return True, f"New champion: {what} beats {against} on {where}.{accepted}"
    return False, f"Not promoted: {what} does not beat {against} on {where}."


def _shown(tags: Mapping[str, str]) -> str:
    """The accuracies in a version's tags, in words."""
    named = zip(accuracies(tags), ("selection", "test"), strict=True)
    return ", ".join(f"{accuracy:.2%} on {split}" for accuracy, split in named if accuracy is not None)
