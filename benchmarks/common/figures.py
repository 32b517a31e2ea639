"""Figures of result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

Lines = dict[str, Sequence[tuple[float, float]]]  # points of each line, by its label


def draw(panels: Mapping[str, Lines], labels: tuple[str, str], path: Path) -> None:
    """Draw the lines of each panel beside the others, all with `labels` of x and y and one scale of y."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    (axes,) = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            panel.plot(*zip(*points, strict=True), label=label)
        panel.set_title(title)
        panel.set_xlabel(labels[0])
        panel.legend()
    axes[0].set_ylabel(labels[1])
    figure.savefig(path, dpi=120)
