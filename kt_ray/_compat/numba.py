"""Private parts of Numba that compiling kernels once per machine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def cache_directory(compiled: Any) -> Path:
    """Return the directory where Numba keeps what it compiles of a function with `cache=True`.

    Wish: documented statistics of a dispatcher.
    """
    return Path(compiled.stats.cache_path)
