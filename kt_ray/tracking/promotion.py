"""Writing to the registry of translators: the alias `champion` moves only to one that is better on selection."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.model import write_model
from kt_ray.tracking.registry import (
    CHAMPION,
    MeasuredOn,
    RegisteredTranslator,
    accuracies,
    champion_of,
    champions,
    fingerprint_tag,
    measured_on,
    reader,
    utc,
)
from kt_ray.tracking.store import default_store, reaching
from kt_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class ChampionResult:
    """The registered version, whether it is champion now, and the comparison that decided it."""

    version: int
    promoted: bool
    comparison: str
    not_exported: str | None = None


def register_champion(
    tracker: Tracker,
    model_name: str,
    translator_file: Path,
    translator: nn.Module,
    example: State,
    evaluation: Mapping[str, Any],
    *,
    selection_accuracy: float | None,
    test_accuracy: float,
    on: MeasuredOn,
    fingerprint: str,
    study: str,
    trial: int,
    run_id: str,
    protocol: str,
    card: str = "",
) -> ChampionResult:
    """Register a translator and make it champion if it beats the present one on selection.

    `translator_file` is the safetensors file of `translator`, `example` a stack of source blocks, `selection_accuracy`
    the mean accuracy that decides (None: not measured), `on` whether it was measured on a zoo or a dataset, whose is
    the `fingerprint`, `protocol` how (members, images and their fingerprint). `test_accuracy` is the mean that
    `evaluation` (plain values) reports; it is told and decides nothing. `run_id` is the trial's run. A champion of
    another zoo, dataset or protocol, or without the deciding accuracy, stays: the numbers cannot be compared. The same
    file is registered once.
    """
    tracker.arrived()
    client, run_id = tracker.client, tracker.run_id(run_id)
    digest = hashlib.sha256(translator_file.read_bytes()).hexdigest()
    tags = {
        "kt_ray.sha256": digest,
        fingerprint_tag(on): fingerprint,
        "kt_ray.protocol": protocol,
        "kt_ray.test_accuracy": repr(float(test_accuracy)),
        "kt_ray.study": study,
        "kt_ray.trial": str(trial),
    }
    if selection_accuracy is not None:
        tags["kt_ray.selection_accuracy"] = repr(float(selection_accuracy))
    with reaching(tracker.uri):
        version = _registered(client, model_name, digest)
        not_exported = None
        if version is None:
            source, model_id, not_exported = _log_model(
                tracker, translator, example, translator_file, evaluation, run_id, tags, card
            )
            with default_store(tracker.uri):
                version = client.create_model_version(
                    model_name, source, run_id=run_id, tags=tags, model_id=model_id, await_creation_for=30
                )
        present = champion_of(client, model_name)  # only now: while a model was logged, others may have registered
        promoted, comparison = _compare(tags, present, int(version.version))
        if version.description != comparison and (promoted or not version.description):
            client.update_model_version(model_name, version.version, comparison)
        if promoted:
            client.set_registered_model_alias(model_name, CHAMPION, version.version)
        return ChampionResult(int(version.version), promoted, comparison, not_exported)


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
    versions = client.search_model_versions(f"name = '{model_name}'")
    return next((version for version in versions if version.tags.get("kt_ray.sha256") == digest), None)


def _log_model(
    tracker: Tracker,
    translator: nn.Module,
    example: State,
    translator_file: Path,
    evaluation: Mapping[str, Any],
    run_id: str,
    tags: Mapping[str, str],
    card: str,
) -> tuple[str, str, str | None]:
    """A logged model of the trial's run: its URI, its id, why it could not be exported if it could not."""
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    logged = client.create_logged_model(
        tracker.experiment_id, "translator", source_run_id=run_id, tags=dict(tags), model_type="translator"
    )
    with tempfile.TemporaryDirectory(prefix="kt-ray-") as scratch:
        directory = Path(scratch) / "model"
        reason = write_model(directory, translator, example, translator_file, card, logged.model_id, run_id, dict(tags))
        (directory / "evaluation.json").write_text(json.dumps(evaluation, indent=2), encoding="utf-8")
        client.log_model_artifacts(logged.model_id, str(directory))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    return f"models:/{logged.model_id}", logged.model_id, reason


def _compare(tags: Mapping[str, str], present: ModelVersion | None, version: int) -> tuple[bool, str]:
    """Whether version `version` with `tags` shall be champion, and the reason in words."""
    trial = f"study {tags['kt_ray.study']}, trial {tags['kt_ray.trial']}"
    what = f"version {version} (mean accuracy {_shown(tags)}, {trial})"
    on, fingerprint = measured_on(tags)
    where = f"{on} {fingerprint}, {tags['kt_ray.protocol']}"
    if present is None:
        return True, f"First champion: {what} on {where}."
    if int(present.version) == version:
        return True, present.description or f"Champion: {what} on {where}."
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
        return True, f"New champion: {what} beats {against} on {where}."
    return False, f"Not promoted: {what} does not beat {against} on {where}."


def _shown(tags: Mapping[str, str]) -> str:
    """The accuracies in a version's tags, in words."""
    named = zip(accuracies(tags), ("selection", "test"), strict=True)
    return ", ".join(f"{accuracy:.2%} on {split}" for accuracy, split in named if accuracy is not None)
