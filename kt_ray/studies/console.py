"""The output of a long command while it works: a live table on a terminal, a line in a notebook, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kt_ray._io.display import ProgressLine, in_notebook
from kt_ray._io.tables import render
from kt_ray._io.text import duration, number
from kt_ray.translation.evaluation import Evaluation

if TYPE_CHECKING:
    from kt_ray.distillation.distill import Distillation
    from kt_ray.distillation.stages import Progress
    from kt_ray.search.budget import SearchProgress
    from kt_ray.zoo.progress import BuildProgress

LINE_EVERY = 15.0  # seconds between plain lines about the same stage


class StudyConsole:
    """Use as a context manager; `say` for what stays on the screen, `building` and `searching` for what moves."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        # A log or a pipe has no width to fold lines or squeeze tables into.
        width = None if sys.stdout.isatty() else 160
        self.rich = console or Console(
            markup=False, highlight=False, width=width, soft_wrap=width is not None, quiet=quiet
        )
        self._live: Live | None = None
        self._line = ProgressLine(not quiet) if in_notebook() else None
        self._last_line = 0.0
        self._last_done = -1

    def __enter__(self) -> StudyConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.say("interrupted; nothing is lost: the same command goes on from here")

    def say(self, text: str = "") -> None:
        """Print a line that stays."""
        self.rich.print(text)

    def settle(self) -> None:
        """End the moving table of a stage, leaving its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._line is not None:
            self._line.end()
        self._last_line, self._last_done = 0.0, -1

    def building(self, progress: BuildProgress) -> None:
        self._move(
            "zoo",
            progress.done,
            progress.members,
            {
                "members": f"{progress.done} of {progress.members}",
                "actors": f"{progress.actors}",
                "members/hour": f"{progress.members_per_hour:,.0f}",
                "source accuracy": number(progress.mean_accuracy),
                "ETA": duration(progress.eta_seconds),
            },
        )

    def fitting(self, progress: Progress) -> None:
        cells = {"epoch": f"{progress.epoch} of {progress.epochs}"}
        cells |= {name: number(progress.metrics[name]) for name in ("loss", "accuracy") if name in progress.metrics}
        self._move(progress.stage, progress.epoch, progress.epochs, cells)

    def searching(self, progress: SearchProgress) -> None:
        best = ", ".join(f"{path}={number(value)}" for path, value in (progress.best_params or {}).items())
        self._move(
            "search",
            progress.done + progress.pruned,
            progress.total,
            {
                "trials": f"{progress.done} done, {progress.pruned} pruned, {progress.failed} failed, "
                f"{progress.running} running of {progress.total}",
                "best": number(progress.best_value),
                "with": best or "-",
                "device-hours": f"{progress.device_hours:.3f}",
                "ETA": duration(progress.eta_seconds),
            },
        )

    def result(self, result: Evaluation | Distillation) -> None:
        """Print the table of a study's result."""
        if isinstance(result, Evaluation):
            self.say(render(result.display_rows(), result.display_title(), self.rich.width))
        else:
            self.say(result.to_markdown())

    def _move(self, stage: str, done: int, total: int, cells: Mapping[str, str]) -> None:
        if self.rich.is_terminal:
            if self._live is None:
                self._live = Live(console=self.rich, refresh_per_second=4, transient=False)
                self._live.start()
            table = Table(box=box.SIMPLE, show_header=False, title=stage, title_justify="left", title_style="bold")
            table.add_column(style="dim")
            table.add_column(overflow="fold")
            for label, value in cells.items():
                table.add_row(label, value)
            self._live.update(table)
            return
        line = f"{stage}: " + "; ".join(f"{label} {value}" for label, value in cells.items() if value != "-")
        if self._line is not None:
            self._line.update(line, last=done == total)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY or (done == total and done != self._last_done):
            self._last_line, self._last_done = now, done
            self.say(line)
