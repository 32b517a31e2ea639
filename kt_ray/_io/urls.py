"""URLs of databases and stores: SQLite paths in them, and what may be printed of them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

HIDDEN = "***"

# scheme://user:password@host; what follows a colon may be a port instead. A password may hold any character.
_PASSWORD = re.compile(r"(?P<user>\b[A-Za-z][\w+.-]*://[^\s:/?#@]*):(?!\d{1,5}(?:[/?#\s]|$))[^\s]*@")
_SECRET = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:pass(?:word|wd)?|pwd|secret|token|credential|signature|sig|api_?key|access_?key)[\w.-]*=)"
    r"[^\s&;#'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return `text`, a URL or a message with URLs, without passwords and secret parameters."""
    return _SECRET.sub(rf"\g<name>{HIDDEN}", _PASSWORD.sub(rf"\g<user>:{HIDDEN}@", text))


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, as SQLAlchemy reads it; None for any other URL and for one in memory."""
    dialect, mark, rest = url.partition(":///")
    if not mark or dialect.split("+")[0] != "sqlite":
        return None
    database, _, query = rest.partition("?")
    if database.startswith("file:") and dict(parse_qsl(query)).get("uri", "").lower() in ("true", "1"):
        database = unquote(urlsplit(database).path)
    return Path(database) if database not in ("", ":memory:") else None


def in_memory(url: str) -> bool:
    """Return whether `url` is a SQLite database that ends with its process."""
    dialect, _, rest = url.partition("://")
    path, _, options = rest.removeprefix("/").partition("?")
    return dialect.split("+")[0] == "sqlite" and (path in ("", ":memory:", "file::memory:") or "mode=memory" in options)


def has_password(url: str) -> bool:
    """Return whether `url` holds a password or another secret."""
    return redacted(url) != url
