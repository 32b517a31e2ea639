"""Entries that MLflow has not got yet, in order, on disk: a store that is away for a while costs a search nothing."""

from __future__ import annotations

import json
import logging
from collections import deque
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from kt_ray._io.checksum import json_digest
from kt_ray._io.files import write_whole
from kt_ray.config.base import Frozen
from kt_ray.errors import TrackingError
from kt_ray.tracking.runs import Input, Status

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
SHA256 = "sha256"  # of an entry, in its line
PENDING = "pending-"  # begins a reference to a run that is not made yet
Texts = dict[str, str]
Integer = Annotated[int, Field(ge=0, lt=2**63)]


class _Entry(Frozen):
    """A line of the file, in strict types."""

    model_config = ConfigDict(strict=True)

    time: Integer


class _Run(_Entry):
    do: Literal["run"]
    as_: str = Field(alias="as")
    name: str
    identity: Texts
    params: Texts
    tags: Texts


class _Log(_Entry):
    do: Literal["log"]
    run: str
    metrics: dict[str, float]
    step: Integer


class _Finish(_Entry):
    do: Literal["finish"]
    run: str
    status: Status
    tags: Texts


class _Inputs(_Entry):
    do: Literal["inputs"]
    run: str
    inputs: list[Input]


_Line: TypeAdapter[_Run | _Log | _Finish | _Inputs] = TypeAdapter(
    Annotated[_Run | _Log | _Finish | _Inputs, Field(discriminator="do")]
)


class Outbox:
    """A queue of plain entries, mirrored in the JSON-lines file `path` (kept in memory alone if None).

    A later process that opens the same file finds what the earlier one could not send, even if that was killed.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: deque[Entry] = deque(_read(path) if path else [])
        if path is not None and path.exists() and path.read_bytes().count(b"\n") != len(self.entries):
            self.save()  # a last line that was cut off would be joined with the next

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(entry))
        except OSError as error:
            raise TrackingError(
                f"MLflow does not answer, and what it has not got cannot be written to {self.path} ({error.strerror})"
            ) from None

    def save(self) -> None:
        """Write what is left to the file, or remove it where nothing is."""
        if self.path is None:
            return
        if not self.entries:
            self.path.unlink(missing_ok=True)
            return
        write_whole(self.path, "".join(_line(entry) for entry in self.entries).encode())


def _read(path: Path) -> list[Entry]:
    """Return the entries in `path`.

    A last line that a crash cut off is left out. A file with other lines that are no entries is kept aside, and those
    lines are left out.
    """
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise TrackingError(f"{path} cannot be read ({error.strerror}); mend that, or remove the file") from None
    entries, bad = list[Entry](), list[int]()
    known = set[str]()  # references to runs that an earlier entry opens
    for number, line in enumerate(lines, 1):
        try:
            entry = _Line.validate_json(json.dumps(_checked(json.loads(line)))).model_dump(by_alias=True)
            if entry["do"] != "run" and entry["run"].startswith(PENDING) and entry["run"] not in known:
                raise ValueError(entry["run"])
        except (ValueError, TypeError, RecursionError):
            if number < len(lines):
                bad.append(number)
            continue
        known |= {entry["as"]} if entry["do"] == "run" else set()
        entries.append(entry)
    if bad:
        aside = _free_name(path)
        try:
            path.rename(aside)
            aside.with_name(path.name).write_text("".join(_line(entry) for entry in entries))
        except OSError as error:
            raise TrackingError(
                f"{path} holds lines that are no entries and cannot be moved ({error.strerror}); remove it"
            ) from None
        logger.warning(
            "%s holds lines that are no entries (%d, the first is line %d); they are not sent, the file is kept as %s",
            path,
            len(bad),
            bad[0],
            aside,
        )
    return entries


def _line(entry: Entry) -> str:
    """Return the line of an entry: JSON with its SHA-256."""
    return json.dumps({**entry, SHA256: json_digest(entry)}) + "\n"


def _checked(entry: Entry) -> Entry:
    """Return an entry without its SHA-256. Raises ValueError if it has another; older ones have none."""
    known = entry.pop(SHA256, None) if isinstance(entry, dict) else None
    if known is not None and known != json_digest(entry):
        raise ValueError(known)
    return entry


def _free_name(path: Path) -> Path:
    """Return a name beside `path` that no file has."""
    return next(name for number in count(1) if not (name := path.with_name(f"{path.name}.damaged-{number}")).exists())
