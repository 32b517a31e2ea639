"""Objects that print themselves: a table on a terminal, an HTML table in a notebook."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from kt_ray._io.tables import Row, html_table, render, render_facts

EVERY = 0.2  # seconds between two updates of a line


class Displayed:
    """Base of objects that are shown as a table: `display_title` and `display_rows` say what is in it.

    Rows with the columns "" and "value" are names and values, and are shown as such.
    """

    def display_title(self) -> str:
        """Return a line about the object."""
        raise NotImplementedError

    def display_rows(self) -> Sequence[Row]:
        """Return the rows of the table, mappings with the same keys."""
        raise NotImplementedError

    def __repr__(self) -> str:
        rows, width = self.display_rows(), shutil.get_terminal_size((120, 24)).columns
        if rows and list(rows[0]) == ["", "value"]:
            return render_facts({row[""]: row["value"] for row in rows}, self.display_title(), width)
        return render(rows, self.display_title(), width)

    def _repr_html_(self) -> str:
        return html_table(self.display_rows(), self.display_title())


class ProgressLine:
    """One line on standard output that is overwritten as work goes on, on terminals and in notebooks alone."""

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown and (sys.stdout.isatty() or in_notebook())
        self.last, self.width = 0.0, 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Leave what the line shows on the screen; the next update is a new line."""
        if self.width:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self.width = 0

    def update(self, text: str, *, last: bool = False) -> None:
        """Show `text` in place of what the line shows, unless that was shown less than `EVERY` seconds ago."""
        now = time.monotonic()
        if not self.shown or (now - self.last < EVERY and not last):
            return
        sys.stdout.write("\r" + text.ljust(self.width))
        sys.stdout.flush()
        self.last, self.width = now, len(text)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
