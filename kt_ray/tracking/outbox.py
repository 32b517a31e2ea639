"""What MLflow has not got yet, in order, on disk: a store that is away for a while costs a search nothing."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from kt_ray.errors import TrackingError

Entry = dict[str, Any]


class Outbox:
    """A queue of plain entries, mirrored in the JSON-lines file `path` (kept in memory alone if None).

    A later process that opens the same file finds what the earlier one could not send, even if that was killed.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: deque[Entry] = deque(_read(path) if path else [])
        if path is not None and path.exists():
            self.save()

    def __len__(self) -> int:
        return len(self.entries)

    def put(self, entry: Entry) -> None:
        """Add `entry` at the end."""
        self.entries.append(entry)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise TrackingError(
                f"MLflow does not answer, and what it lacks cannot be written to {self.path} ({error.strerror})"
            ) from None

    def save(self) -> None:
        """Write what is left to the file, or remove it where nothing is."""
        if self.path is None:
            return
        if not self.entries:
            self.path.unlink(missing_ok=True)
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        temporary.replace(self.path)


def _read(path: Path) -> list[Entry]:
    """The entries in `path`; a last line cut off by a crash is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise TrackingError(f"{path}, line {number} is not JSON; mend or remove it") from None
    return entries
