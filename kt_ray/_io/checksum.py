"""Files that carry a SHA-256 of all their bytes, so that a flipped bit anywhere is found before they are parsed.

The digest is stored in the file itself, as the value of `kt_ray.sha256` in the metadata that its format has (an entry
of a JSON mapping, of Parquet's or of safetensors' metadata), and is computed with `BLANK` instead of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "kt_ray.sha256"
BLANK = "0" * 64
_PLACE = re.compile(re.escape(KEY.encode()) + rb"[^0-9a-f]{1,5}([0-9a-f]{64})")  # separators of JSON or of Thrift


def with_checksum(content: bytes) -> bytes:
    """Return `content`, whose metadata map `KEY` to `BLANK`, with its SHA-256. Raises ValueError without `KEY`."""
    place = _place(content)
    if place is None:
        raise ValueError(f"no {KEY} in the metadata")
    return content[: place.start] + _digest(content, place) + content[place.stop :]


def checksum_holds(content: bytes) -> bool | None:
    """Return whether `content` has the SHA-256 that it carries; None if it carries none."""
    place = _place(content)
    return None if place is None else content[place] == _digest(content, place)


def json_with_checksum(content: Mapping[str, Any]) -> bytes:
    """Return `content` as JSON that carries its SHA-256."""
    return with_checksum(json.dumps({**content, KEY: BLANK}, indent=1).encode())


def checked_json(content: bytes) -> dict[str, Any]:
    """Return the mapping in `content`, JSON; files from before they carried a SHA-256 are read too.

    Raises ValueError if it is none, or does not have the SHA-256 that it carries.
    """
    if checksum_holds(content) is False:
        raise ValueError("its SHA-256 is not the one that it carries")
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, expected a mapping")
    found.pop(KEY, None)
    return found


def json_digest(content: Any) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path`."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _place(content: bytes) -> slice | None:
    """Return where the digest is: the last match, as text of users may come before it."""
    matches = list(_PLACE.finditer(content))
    return slice(*matches[-1].span(1)) if matches else None


def _digest(content: bytes, place: slice) -> bytes:
    view = memoryview(content)
    digest = hashlib.sha256(view[: place.start])
    digest.update(BLANK.encode())
    digest.update(view[place.stop :])
    return digest.hexdigest().encode()
