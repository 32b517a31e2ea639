"""Reading the registry of translators: what is registered, who is champion, where a translator's file is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from kt_ray._io.checksum import file_digest, json_digest
from kt_ray._io.scratch import make_scratch
from kt_ray._io.urls import redacted
from kt_ray.errors import TrackingError
from kt_ray.tracking.model import TRANSLATOR_FILE
from kt_ray.tracking.store import filter_text, open_store, reaching
from kt_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PAGE = 1000  # versions a request
TAGS_SHA256 = "kt_ray.tags_sha256"  # tag of a version: the hash of its other ones of kt_ray's
MeasuredOn = Literal["zoo", "dataset"]  # what the champions that are compared with each other were measured on


@dataclass(frozen=True)
class RegisteredTranslator:
    """One version in the registry, as `kt-ray champions` lists it.

    `fingerprint` is that of the zoo or dataset, as `measured_on` says, whose champions it is compared with: by the
    accuracy on selection, of which `protocol` says on what. The one on test is for people; None is unknown.
    """

    name: str
    version: int
    champion: bool
    selection_accuracy: float | None
    test_accuracy: float | None
    study: str
    trial: str
    measured_on: MeasuredOn
    fingerprint: str
    protocol: str
    run_id: str
    registered: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def champions(store: Tracker | str, model_name: str) -> list[RegisteredTranslator]:
    """Every registered version of `model_name`, newest first; `store` is a tracker or a tracking URI."""
    client, uri = reader(store)
    with reaching(uri):
        present = champion_of(client, model_name)
        versions = versions_of(client, model_name)
    entries = [
        RegisteredTranslator(
            name=model_name,
            version=int(version.version),
            champion=present is not None and int(version.version) == int(present.version),
            selection_accuracy=accuracies(version.tags)[0],
            test_accuracy=accuracies(version.tags)[1],
            study=version.tags.get("kt_ray.study", ""),
            trial=version.tags.get("kt_ray.trial", ""),
            measured_on=measured_on(version.tags)[0],
            fingerprint=measured_on(version.tags)[1],
            protocol=version.tags.get("kt_ray.protocol", ""),
            run_id=version.run_id or "",
            registered=utc(version.creation_timestamp / 1000).isoformat(" ", "seconds"),
            description=version.description or "",
        )
        for version in versions
    ]
    return sorted(entries, key=lambda entry: -entry.version)


def load_champion_path(tracking_uri: str, model_uri: str) -> Path:
    """Return the safetensors file of `models:/NAME@champion`, of `models:/NAME/3`, or at a path.

    Raises TrackingError if there is none, or if a registered one is not the file that was registered.
    """
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
        digest = version.tags.get("kt_ray.sha256")
        model_id = version.model_id or (version.source or "").removeprefix("models:/")
        if not model_id.startswith("m-"):
            raise TrackingError(f"{model_uri} was not registered by kt-ray: it comes from {version.source}")
        location = client.get_logged_model(model_id).artifact_location
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            local = Path(unquote(parts.path)) / TRANSLATOR_FILE
            if not local.is_file():
                raise TrackingError(f"{model_uri} is missing: its file should be {local}; bring its folder back")
            return _checked(local, digest, model_uri)
        target = make_scratch()
        uri = f"{location.rstrip('/')}/{TRANSLATOR_FILE}"
        downloaded = Path(download_artifacts(uri, dst_path=str(target), tracking_uri=tracking_uri))
        return _checked(downloaded, digest, model_uri)


def _checked(path: Path, digest: str | None, model_uri: str) -> Path:
    """`path`, if it has the SHA-256 that was registered. Raises TrackingError if not."""
    if digest is not None and file_digest(path) != digest:
        raise TrackingError(
            f"{model_uri} is damaged: {path} is not the file that was registered (its SHA-256 differs); restore it, "
            "or register the translator again with `kt-ray run`"
        )
    return path


def reader(store: Tracker | str) -> tuple[MlflowClient, str]:
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
            return _check_tags(client.get_model_version_by_alias(name, alias))
        return _check_tags(client.get_model_version(name, version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        names = [model.name for model in client.search_registered_models()]
        raise TrackingError(
            f"{model_uri} is not in the registry {redacted(tracking_uri)}, which has "
            f"{', '.join(names) or 'no models'}; `kt-ray run` registers a champion"
        ) from None


def champion_of(client: MlflowClient, model_name: str) -> ModelVersion | None:
    """The present champion of `model_name`, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    number = model.aliases.get(CHAMPION)
    return _check_tags(client.get_model_version(model_name, number)) if number is not None else None


def versions_of(client: MlflowClient, model_name: str) -> list[ModelVersion]:
    """Every version of `model_name`, whatever characters its name has."""
    quoted = filter_text(model_name)
    condition = f"name = {quoted}" if quoted else None
    found, token = [], None
    while token != "":
        page = client.search_model_versions(condition, max_results=PAGE, page_token=token)
        found += [_check_tags(version) for version in page if version.name == model_name]
        token = page.token or ""
    return found


def accuracies(tags: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Accuracy on selection, by which champions are chosen, and on test, from a version's tags; None if unknown.

    Older registries chose by the one on test and have no other: `kt_ray.accuracy`.
    """
    selected = tags.get("kt_ray.selection_accuracy")
    tested = tags.get("kt_ray.test_accuracy", tags.get("kt_ray.accuracy"))
    return None if selected is None else float(selected), None if tested is None else float(tested)


def tags_digest(tags: Mapping[str, str]) -> str:
    """Return the SHA-256 of what a version's tags say of its translator."""
    told = {key: value for key, value in tags.items() if key.startswith("kt_ray.") and key != TAGS_SHA256}
    return json_digest(told)


def _check_tags(version: ModelVersion) -> ModelVersion:
    """Return `version`. Raises TrackingError if its tags are not those that were registered."""
    known = version.tags.get(TAGS_SHA256)
    if known is not None and known != tags_digest(version.tags):
        raise TrackingError(
            f"version {version.version} of {version.name} is damaged in the registry: its kt_ray. tags are not those "
            "that were registered; restore a backup of MLflow's database, or delete the version"
        )
    return version


def fingerprint_tag(on: MeasuredOn) -> str:
    """The tag that holds the fingerprint of the zoo or dataset."""
    return f"kt_ray.{on}_fingerprint"


def measured_on(tags: Mapping[str, str]) -> tuple[MeasuredOn, str]:
    """Zoo or dataset, and its fingerprint, from a version's tags.

    In older registries the tag of a zoo holds the fingerprint of a student's dataset; no zoo has the same one.
    """
    on: MeasuredOn = "dataset" if fingerprint_tag("dataset") in tags else "zoo"
    return on, tags.get(fingerprint_tag(on), "")


def utc(seconds: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)
