"""What a person allows a study: code (`--allow-code`, which a workspace remembers by its SHA-256), files elsewhere."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kt_ray.config.code import CodeFile
from kt_ray.config.study_code import load_code
from kt_ray.errors import ConfigError
from kt_ray.studies.workspace import Workspace

LARGEST = 1 << 20  # bytes of the list


@dataclass(frozen=True)
class Permission:
    """The code that may run in the workspace at `root`: any if `given`, else what was allowed there before.

    Files of the folders `includes` may be included beside those of the study file's own.
    The list of a workspace counts only for the user who wrote it and only where it was written: a copy of it, as in a
    workspace from someone else, allows nothing.
    """

    root: Path
    given: bool = False
    includes: tuple[Path, ...] = ()

    @classmethod
    def at(
        cls, workspace: str | Path | None = None, given: bool = False, includes: Sequence[str | Path] | None = None
    ) -> Permission:
        """Return the permission in the workspace that commands take, given now or before."""
        root = Workspace.at(workspace).root
        return cls(root, given, tuple(Path(folder) for folder in includes or ()))

    def covers(self, files: Sequence[CodeFile]) -> bool:
        """Return whether all of `files` may run."""
        return not self._refused(files)

    def run(self, files: Sequence[CodeFile]) -> None:
        """Run `files` in this process, and remember that they may if that is said for the first time.

        Raises ConfigError with a line for each file that may not, and then runs none; or as `load_code` does.
        """
        refused = self._refused(files)
        if refused:
            raise ConfigError(
                [
                    f"{file.name} is code that the study runs, SHA-256 {file.sha256}; read it, then allow it with "
                    "--allow-code"
                    for file in refused
                ]
            )
        load_code(files)
        if self.given and not Permission(self.root).covers(files):
            self._remember({file.sha256 for file in files} | self._allowed())

    @property
    def _path(self) -> Path:
        return self.root / f".allowed-code.{os.getuid()}.json"

    def _refused(self, files: Sequence[CodeFile]) -> list[CodeFile]:
        if self.given or not files:
            return []
        allowed = self._allowed()
        return [file for file in files if file.sha256 not in allowed]

    def _allowed(self) -> set[str]:
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                facts, content = os.fstat(descriptor), json.loads(file.read(LARGEST))
            private = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077
            if private and content["inode"] == facts.st_ino:
                return set(content["sha256"])
        return set()

    def _remember(self, hashes: set[str]) -> None:
        """Write the list, whole and for this user alone. A workspace that cannot be written remembers nothing."""
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.root, prefix=self._path.name)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump({"inode": os.fstat(descriptor).st_ino, "sha256": sorted(hashes)}, file)
                os.replace(name, self._path)
            finally:
                with suppress(OSError):
                    os.unlink(name)
