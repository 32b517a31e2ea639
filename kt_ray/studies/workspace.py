"""The places of a command's data: `./kt-workspace`, `--workspace` or `KT_RAY_WORKSPACE`; on a cluster, URIs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kt_ray._io.checksum import checked_json
from kt_ray._io.text import first_line
from kt_ray.config import DistillConfig, StorageConfig, StudyConfig, validate
from kt_ray.config.base import explain
from kt_ray.errors import ConfigError, StudyError
from kt_ray.tracking.tracker import Tracker

VARIABLE = "KT_RAY_WORKSPACE"
LONGEST = 200  # bytes of a name that becomes a directory
DEFAULT = "kt-workspace"
OUTBOX = "mlflow-outbox.jsonl"
Made = TypeVar("Made")
STORAGE_VARIABLES = {field: f"KT_RAY_STORAGE_{field.upper()}" for field in StorageConfig.model_fields}


@dataclass(frozen=True)
class Workspace:
    """A directory with `zoos/<name>/`, `studies/<name>/`, `optuna.db`, `mlflow.db`, `artifacts/`.

    `storage` (from the study file, overridden by `KT_RAY_STORAGE_ZOOS` and so on) puts any of them elsewhere.
    """

    root: Path
    storage: StorageConfig = StorageConfig()

    @classmethod
    def at(cls, root: str | Path | None = None, storage: StorageConfig | None = None) -> Workspace:
        """The workspace at `root`, else at `KT_RAY_WORKSPACE`, else `./kt-workspace`, whether it is there or not."""
        given = root or os.environ.get(VARIABLE) or DEFAULT
        try:
            path = Path(given).expanduser().absolute()
        except RuntimeError:
            raise ConfigError(f"workspace {given}: no such user's home; name another with --workspace") from None
        if found := set(str(path)) & set("?#%"):
            raise ConfigError(
                f"workspace {path}: a URL of a database in it cannot hold {' '.join(sorted(found))}; name another "
                f"directory with --workspace or {VARIABLE}"
            )
        return cls(path, from_environment(storage or StorageConfig()))

    @classmethod
    def open(cls, root: str | Path | None = None, storage: StorageConfig | None = None) -> Workspace:
        """The workspace `at` root, made if missing. Raises ConfigError if it cannot be written."""
        workspace = cls.at(root, storage)
        try:
            workspace.root.mkdir(parents=True, exist_ok=True)
            probe = workspace.root / f".write-probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"workspace {workspace.root} cannot be written ({error.strerror}); name another with --workspace or "
                f"{VARIABLE}"
            ) from None
        return workspace

    @classmethod
    def existing(cls, root: str | Path | None = None, storage: StorageConfig | None = None) -> Workspace:
        """The workspace `at` root, for what only reads: nothing is made. Raises ConfigError if there is none."""
        workspace = cls.at(root, storage)
        if not workspace.present:
            raise ConfigError(
                f"no workspace at {workspace.root}; `kt-ray run` makes one, --workspace or {VARIABLE} names another"
            )
        return workspace

    @property
    def present(self) -> bool:
        """True if there can be anything to read: its directory, or a storage elsewhere."""
        return self.root.is_dir() or self.storage != StorageConfig()

    @property
    def option(self) -> str:
        """The end of a command that is to work here: ` --workspace ROOT`, empty for `./kt-workspace`."""
        return "" if self.root == Path(DEFAULT).absolute() else f" --workspace {shlex.quote(str(self.root))}"

    def zoo(self, name: str) -> str:
        """Path or URI of the zoo `name`."""
        return _under(self.storage.zoos or str(self.root / "zoos"), _part(name))

    def study_directory(self, name: str) -> Path:
        """Directory of the study `name`: its resolved study file, report and figures."""
        return self.root / "studies" / _part(name)

    def checkpoints(self, study: str) -> str:
        """Directory of the trial checkpoints of `study`, which every node must see."""
        place = self.storage.checkpoints or str(self.root / "studies")
        place = place if "://" in place else str(Path(place).expanduser().absolute())  # workers run elsewhere
        return f"{place.rstrip('/')}/{_part(study)}/checkpoints"

    @property
    def study_storage(self) -> str:
        """Optuna storage URL of the studies."""
        return self.storage.study or f"sqlite:///{self.root / 'optuna.db'}"

    @property
    def tracking_uri(self) -> str:
        return self.storage.tracking or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str | None:
        """MLflow artifact root for new experiments; None leaves it to a tracking server."""
        if self.storage.artifacts:
            return self.storage.artifacts
        return None if self.storage.tracking else (self.root / "artifacts").as_uri()


def _part(name: str) -> str:
    """Return `name` as the name of a directory. Raises ConfigError if it would be another place, or none at all.

    A database that other programs use may hold studies of any name.
    """
    if not name or name in (".", "..") or len(name.encode()) > LONGEST or set(name) & set("/\\\0\n"):
        raise ConfigError(f"{name[:LONGEST]!r} cannot name a directory; expected one without slashes")
    return name


def _under(place: str, name: str) -> str:
    """The path or URI of `name` in `place`; the options of a URI (`s3://bucket/zoos?region=…`) stay at its end."""
    address, mark, options = place.partition("?") if "://" in place else (place, "", "")
    return f"{address.rstrip('/')}/{name}{mark}{options}"


def read_json(path: Path, make: Callable[[Any], Made]) -> Made:
    """Return what `make` makes of the JSON file at `path` of a study. Raises StudyError if that is damaged."""
    try:
        return make(checked_json(path.read_bytes()))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from None
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fault = explain(error)[0] if isinstance(error, ValidationError) else first_line(error)
        raise StudyError(f"{path} is damaged ({fault}); remove it and run the study file again") from None


def open_tracker(config: StudyConfig | DistillConfig, workspace: Workspace) -> Tracker:
    """Return MLflow's experiment of the project. What it misses while it is away waits in the study's directory."""
    outbox = workspace.study_directory(config.name) / OUTBOX
    return Tracker(workspace.tracking_uri, config.project, workspace.artifact_root, outbox)


def from_environment(storage: StorageConfig) -> StorageConfig:
    """`storage` with what the environment sets in place of its own: `KT_RAY_STORAGE_STUDY`, …_ZOOS and so on."""
    given = {field: os.environ[name] for field, name in STORAGE_VARIABLES.items() if os.environ.get(name)}
    if not given:
        return storage
    return validate(StorageConfig, storage.model_dump() | given, "the environment's KT_RAY_STORAGE_ variables")
