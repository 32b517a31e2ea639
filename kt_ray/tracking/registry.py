"""The registry of translators. The alias `champion` moves only to a better one, compared like with like."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from torch import nn

from kt_ray.errors import TrackingError
from kt_ray.networks import State
from kt_ray.tracking.model import TRANSLATOR_FILE, write_model
from kt_ray.tracking.store import default_store, open_store, reaching, shown
from kt_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"


@dataclass(frozen=True)
class ChampionResult:
    """The registered version, whether it is champion now, and the comparison that decided it."""

    version: int
    promoted: bool
    comparison: str
    not_exported: str | None = None


@dataclass(frozen=True)
class RegisteredTranslator:
    """One version in the registry, as `kt-ray champions` lists it."""

    name: str
    version: int
    champion: bool
    accuracy: float
    study: str
    trial: str
    zoo_fingerprint: str
    protocol: str
    run_id: str
    registered: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def row(self) -> dict[str, Any]:
        """A line of a table for people."""
        return {
            "version": self.version,
            "champion": "champion" if self.champion else "",
            "accuracy": f"{self.accuracy:.4f}",
            "study": self.study,
            "trial": self.trial,
            "zoo": self.zoo_fingerprint,
            "registered": self.registered,
        }


def register_champion(
    tracker: Tracker,
    model_name: str,
    translator_file: Path,
    translator: nn.Module,
    example: State,
    evaluation: Mapping[str, Any],
    *,
    accuracy: float,
    zoo_fingerprint: str,
    study: str,
    trial: int,
    run_id: str,
    protocol: str,
    card: str = "",
) -> ChampionResult:
    """Register a translator and make it champion if it beats the present one.

    `translator_file` is the safetensors file of `translator`, `example` a stack of source blocks, `accuracy` the mean
    test accuracy that `evaluation` (plain values) reports, `protocol` what it was measured on (members, images and
    their fingerprint), `run_id` the trial's run. A champion of another zoo or protocol stays: the numbers cannot be
    compared. The same file is registered once.
    """
    tracker.arrived()
    client, run_id = tracker.client, tracker.run_id(run_id)
    digest = hashlib.sha256(translator_file.read_bytes()).hexdigest()
    tags = {
        "kt_ray.sha256": digest,
        "kt_ray.zoo_fingerprint": zoo_fingerprint,
        "kt_ray.protocol": protocol,
        "kt_ray.accuracy": repr(float(accuracy)),
        "kt_ray.study": study,
        "kt_ray.trial": str(trial),
    }
    with reaching(tracker.uri):
        present = _champion(client, model_name)
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
    client, uri = _reader(store)
    known = {entry.version for entry in champions(store, model_name)}
    if version not in known:
        raise TrackingError(
            f"{model_name} has no version {version}; it has {', '.join(map(str, sorted(known))) or 'none'}"
        )
    with reaching(uri):
        present = _champion(client, model_name)
        before = f" in place of version {present.version}" if present else ""
        description = client.get_model_version(model_name, str(version)).description or ""
        note = f"Promoted by hand on {_utc(time.time()).date()}{before}{': ' + reason if reason else ''}."
        client.update_model_version(model_name, str(version), f"{description}\n{note}".strip())
        client.set_registered_model_alias(model_name, CHAMPION, str(version))
    return next(entry for entry in champions(store, model_name) if entry.version == version)


def champions(store: Tracker | str, model_name: str) -> list[RegisteredTranslator]:
    """Every registered version of `model_name`, newest first; `store` is a tracker or a tracking URI."""
    client, uri = _reader(store)
    with reaching(uri):
        present = _champion(client, model_name)
        versions = client.search_model_versions(f"name = '{model_name}'")
    entries = [
        RegisteredTranslator(
            name=model_name,
            version=int(version.version),
            champion=present is not None and int(version.version) == int(present.version),
            accuracy=float(version.tags.get("kt_ray.accuracy", "nan")),
            study=version.tags.get("kt_ray.study", ""),
            trial=version.tags.get("kt_ray.trial", ""),
            zoo_fingerprint=version.tags.get("kt_ray.zoo_fingerprint", ""),
            protocol=version.tags.get("kt_ray.protocol", ""),
            run_id=version.run_id or "",
            registered=_utc(version.creation_timestamp / 1000).isoformat(" ", "seconds"),
            description=version.description or "",
        )
        for version in versions
    ]
    return sorted(entries, key=lambda entry: -entry.version)


def load_champion_path(tracking_uri: str, model_uri: str) -> Path:
    """The translator's safetensors file behind `models:/NAME@champion`, `models:/NAME/3`, or at a path."""
    if not model_uri.startswith("models:/"):
        path = Path(model_uri).expanduser()
        if path.is_dir():
            path = path / TRANSLATOR_FILE
        if not path.is_file():
            raise TrackingError(
                f"no translator at {model_uri!r}; expected a safetensors file or a registered one such as "
                "models:/kt-translator@champion"
            )
        return path
    client = open_store(tracking_uri, make=False)
    with reaching(tracking_uri):
        from mlflow.artifacts import download_artifacts

        version = _resolve(client, tracking_uri, model_uri)
        model_id = version.model_id or (version.source or "").removeprefix("models:/")
        if not model_id.startswith("m-"):
            raise TrackingError(f"{model_uri} was not registered by kt-ray: it comes from {version.source}")
        location = client.get_logged_model(model_id).artifact_location
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            local = Path(unquote(parts.path)) / TRANSLATOR_FILE
            if not local.is_file():
                raise TrackingError(f"{model_uri} should lie at {local}, which is missing; was the workspace moved?")
            return local
        target = tempfile.mkdtemp(prefix="kt-ray-")
        uri = f"{location.rstrip('/')}/{TRANSLATOR_FILE}"
        return Path(download_artifacts(uri, dst_path=target, tracking_uri=tracking_uri))


def _reader(store: Tracker | str) -> tuple[MlflowClient, str]:
    """The client of a store that is there already, and its URI."""
    if isinstance(store, str):
        return open_store(store, make=False), store
    return store.client, store.uri


def _resolve(client: MlflowClient, tracking_uri: str, model_uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    from mlflow.exceptions import MlflowException

    rest = model_uri.removeprefix("models:/")
    name, alias = rest.rsplit("@", 1) if "@" in rest else (rest.split("/")[0], "")
    version = "" if alias else rest.partition("/")[2]
    if not alias and not version.isdigit():
        raise TrackingError(f"{model_uri!r} names no version; expected models:/NAME@champion or models:/NAME/3")
    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = [model.name for model in client.search_registered_models()]
        raise TrackingError(
            f"{model_uri} is not in the registry {shown(tracking_uri)}, which has "
            f"{', '.join(names) or 'no models'}; `kt-ray run` registers a champion"
        ) from None


def _champion(client: MlflowClient, model_name: str) -> ModelVersion | None:
    """The present champion; makes the registered model if it is not there yet."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    number = model.aliases.get(CHAMPION)
    return client.get_model_version(model_name, number) if number is not None else None


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
    score = float(tags["kt_ray.accuracy"])
    what = f"version {version} ({score:.2%} mean accuracy, study {tags['kt_ray.study']}, trial {tags['kt_ray.trial']})"
    where = f"zoo {tags['kt_ray.zoo_fingerprint']}, {tags['kt_ray.protocol']}"
    if present is None:
        return True, f"First champion: {what} on {where}."
    old = float(present.tags.get("kt_ray.accuracy", "nan"))
    if int(present.version) == version:
        return True, present.description or f"Champion: {what} on {where}."
    against = f"version {present.version} ({old:.2%}, study {present.tags.get('kt_ray.study', '?')})"
    for key, word in (("kt_ray.zoo_fingerprint", "zoo"), ("kt_ray.protocol", "test protocol")):
        if present.tags.get(key) != tags[key]:
            return False, (
                f"Not compared: {what} was measured on the {word} {tags[key]}, the champion {against} on "
                f"{present.tags.get(key)}. `kt-ray promote` moves the alias by hand."
            )
    if score > old:
        return True, f"New champion: {what} beats {against} on {where}."
    return False, f"Not promoted: {what} does not beat {against} on {where}."


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
