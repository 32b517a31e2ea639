"""An evaluation as pictures: accuracies, source against translated, what is confused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kt_ray.translation.evaluation import Evaluation

SHOWN = ("trained target", "translated", "pruned block")


def figures(evaluation: Evaluation) -> dict[str, Figure]:
    """All of them by name: `accuracy`, `members` and `confusion`."""
    return {"accuracy": accuracies(evaluation), "members": members(evaluation), "confusion": confusion(evaluation)}


def save_figures(evaluation: Evaluation, directory: Path) -> list[Path]:
    """Write `accuracy.png`, `members.png` and `confusion.png` into `directory`; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(evaluation).items():
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
    return paths


def accuracies(evaluation: Evaluation) -> Figure:
    """Histogram of the members' accuracies with each of a few kinds of block."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 1, 41)
    for row in evaluation.rows:
        if row.name in SHOWN:
            axes.hist(row.accuracies, bins=bins.tolist(), alpha=0.6, label=row.name)
    axes.set(xlabel=f"accuracy on {evaluation.images} images", ylabel=f"{evaluation.members} members")
    axes.legend()
    return figure


def members(evaluation: Evaluation) -> Figure:
    """Each member's accuracy with its source against that with its translated and its trained target block, if any."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    source = evaluation.row("source").accuracies
    markers = {"trained target": "+", "translated": "o"}
    for row in evaluation.rows:
        if row.name in markers:
            axes.scatter(source, row.accuracies, s=18, marker=markers[row.name], label=row.name)
    axes.set(xlabel="accuracy of the source", ylabel="accuracy with the small block")
    axes.legend()
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Wrong predictions with translated blocks, as shares of each label."""
    counts = np.array(evaluation.confusion, dtype=float)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    np.fill_diagonal(shares, 0)
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="magma")
    axes.set(xlabel="predicted", ylabel="label", xticks=range(len(shares)), yticks=range(len(shares)))
    figure.colorbar(image, ax=axes, label="share of the label's images")
    return figure
