"""Things that take long to make, kept in a directory under a hash of what decides them."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kt_ray._io.checksum import json_digest
from kt_ray.distillation.fitting import read_checkpoint, save_checkpoint
from kt_ray.errors import CheckpointError

logger = logging.getLogger(__name__)

VERSION = 1  # raised whenever the same configuration would be made into something else

Made = tuple[dict[str, Tensor], dict[str, Any]]  # a state, and facts that JSON can hold


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits that follow from `parts` (anything JSON can hold)."""
    return json_digest([VERSION, *parts])[:16]


@dataclass(frozen=True)
class Cache:
    """`<key>.safetensors` files in `directory`. Processes may share it: one makes a thing, the others wait for it.

    `memory` is looked at first: a search puts there what its trials share.
    """

    directory: Path
    memory: Mapping[str, Made] = field(default_factory=dict)

    def get(self, key: str, make: Callable[[Path], Made]) -> Made:
        """Return the entry of `key`. `make`, called if there is none, may keep its progress in the file it is given."""
        if key in self.memory:
            return self.memory[key]
        path = self.directory / f"{key}.safetensors"
        found = _whole(path)
        if found is None:
            with self._held(key):
                found = _whole(path)
                if found is None:
                    partial = self.directory / f"{key}.partial.safetensors"
                    if _whole(partial) is None:
                        partial.unlink(missing_ok=True)
                    state, facts = make(partial)
                    save_checkpoint(path, {"state": state}, facts)
                    partial.unlink(missing_ok=True)
                    found = read_checkpoint(path)
        parts, facts = found
        return parts.get("state", {}), facts

    @contextmanager
    def _held(self, key: str) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _whole(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return the checkpoint at `path`; None if there is none or it is damaged, and then it is made anew."""
    if not path.exists():
        return None
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        logger.warning("%s; it is made anew", error)
        return None
