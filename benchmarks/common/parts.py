"""Parts of a long measurement, kept as soon as they are made: what is cut short goes on with the next one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Parts:
    """What is measured already, in a file until all of it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, name: str, measure: Callable[..., Any], *arguments: Any) -> None:
        """Measure `name` unless that is done."""
        if name not in self.made:
            self.made[name] = measure(*arguments)
            self.path.write_text(json.dumps(self.made))
