"""The results of `whole_networks.py` from its rows, a network narrowed in one way each: table, figure and headline."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.results import RESULTS, write
from resnet_zoo import BATCH, DATASET, EPOCHS, KINDS, STEM_STRIDE, UNSEEN, Kind
from whole_network_peers import FINE_TUNING_STEPS

SHARES = {"three_quarters": 0.75, "half": 0.5, "quarter": 0.25}
PROBES, RECONSTRUCTION = 4096, 512  # images that a translator carries; training images that reconstruction reads
LONGER = 400
SEEDS = (0, 1, 2)
LEARNED, UNLEARNED = "kt_ray: local mixture, steps", "kt_ray: shapes, steps"
CLUSTERED, PATIENT = "kt_ray: mixture, steps", f"kt_ray: local mixture, {LONGER} steps"
ON_IMAGES = "kt_ray's steps on training images"
STUDENTS = ("KD student", "factor-transfer student")  # of whole_network_students.py
WITH_DATA = ("Torch-Pruning, fine-tuned", "least squares on training images", ON_IMAGES, *STUDENTS)
FOR_UNSEEN = (LEARNED, CLUSTERED, UNLEARNED, "magnitude pruning")  # methods for networks of kinds not tuned on
IMAGES = {
    "Torch-Pruning, fine-tuned": f"{FINE_TUNING_STEPS * BATCH:,} with labels",
    "least squares on training images": str(RECONSTRUCTION),
    ON_IMAGES: f"{PROBES:,}",
}
FIGURE = RESULTS.parent.parent / "docs" / "whole-networks.svg"
Row = dict[str, Any]


def report(rows: list[Row], dataset: str) -> None:
    """Write the table of `rows`; for the usual dataset also other kinds, students and figure."""
    seen = [row for row in rows if kind_of(row) in KINDS]
    found = summary(seen)
    originals = {(kind_of(row), row["network"]): row["original"] for row in seen}
    counts = Counter(kind for kind, _ in originals)
    named = " and ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    text = table(found, named, statistics.mean(originals.values()))
    for method in (LEARNED, PATIENT):
        text += f"\n\nBy kind, {method}: {by_kind(seen, KINDS, method)}."
    recipe = {"dataset": dataset, "kinds": KINDS, "stem_stride": STEM_STRIDE, "epochs": EPOCHS, "probes": PROBES}
    name = "whole_networks"
    if dataset == DATASET:
        text += "\n\nOf a depth and a width (24 channels first) on which no option was chosen, three networks each: "
        known = {row["method"] for row in rows if kind_of(row) in UNSEEN}
        text += "; ".join(f"{method}: {by_kind(rows, UNSEEN, method)}" for method in FOR_UNSEEN if method in known)
        text += f".\n\n{curves([row for row in rows if row['method'] in STUDENTS])}"
        draw(found)
    else:
        name += f"_{dataset}"
    write(name, headline(found), {"recipe": recipe, "summary": found, "rows": rows}, SEEDS, text)
    print(text)


def summary(rows: list[Row]) -> list[Row]:
    """Return mean and worst ratio, agreement, seconds and costs by width and method, over networks (and seeds)."""
    found = []
    for width in SHARES:
        for method in dict.fromkeys(row["method"] for row in rows):
            group = [row for row in rows if (row["width"], row["method"]) == (width, method)]
            if not group:
                continue
            first = [row for row in group if row["seed"] == 0]
            risen = [row["mib"] for row in first if "mib" in row]
            counts = Counter(network_of(row) for row in group)
            complete = {network for network, count in counts.items() if count == len(SEEDS)}
            seeded = {
                seed: statistics.mean(
                    row["ratio"] for row in group if row["seed"] == seed and network_of(row) in complete
                )
                for seed in (SEEDS if complete else ())
            }
            found.append(
                {
                    "width": width,
                    "method": method,
                    "images": IMAGES.get(method) or seen_with_labels(first[0]),
                    "networks": len(first),
                    "mean_ratio": statistics.mean(row["ratio"] for row in first),
                    "min_ratio": min(row["ratio"] for row in first),
                    "agreement": statistics.mean(row["agreement"] for row in first),
                    "seconds": statistics.mean(row["seconds"] for row in first),
                    "multiply_adds": statistics.mean(
                        row["multiply_adds"] / row["original_multiply_adds"] for row in first
                    ),
                    "parameters": statistics.mean(row["parameters"] / row["original_parameters"] for row in first),
                    "mib": f"{statistics.mean(risen):.0f}" if risen else "",
                    "seeded_networks": len(complete),
                    "mean_ratio_by_seed": seeded,
                    "min_ratio_of_all_seeds": min(row["ratio"] for row in group),
                }
            )
    return found


def seen_with_labels(row: Row) -> str:
    """Return how many images of the user's a row's training read."""
    return f"{row['images_seen']:,} with labels" if "images_seen" in row else "none"


def students(trained: list[Row]) -> list[Row]:
    """Return the rows of students trained to the end; their seconds include the paraphraser and the teacher's answers.

    These were made by the first of a method. The search for a learning rate is not counted.
    """
    made = {row["method"]: row["preparation_seconds"] for row in reversed(trained)}
    for row in trained:
        row["seconds"] += made[row["method"]] - row["preparation_seconds"]
    return [row for row in trained if "ratio" in row]


def curves(rows: list[Row]) -> str:
    """Return what students reach after each epoch, so that nobody takes the last for the best that they can be."""
    parts = []
    for row in rows:
        reached = ", ".join(f"{ratio:.3f}" for ratio in row["selection_ratio_by_epoch"])
        parts.append(f"{row['method']} of {kind_of(row)} {row['width'].replace('_', ' ')} {reached}")
    return f"Accuracy ratio after each epoch, on 5,000 images split off the training set: {'; '.join(parts)}."


def table(found: list[Row], networks: str, mean: float) -> str:
    """Return the Markdown table, the best of each width first."""
    columns = ["hidden width", "method", "images", "networks", "mean ratio", "worst ratio", "agreement"]
    columns += ["multiply-adds", "parameters", "seconds", "MiB"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    labels = {"three_quarters": "¾", "half": "½", "quarter": "¼"}
    for width in SHARES:
        rows = sorted((row for row in found if row["width"] == width), key=lambda row: -row["mean_ratio"])
        for row in rows:
            lines.append(
                f"| {labels[width]} | {row['method']} | {row['images']} | {row['networks']} "
                f"| {row['mean_ratio']:.4f} "
                f"| {row['min_ratio']:.4f} | {row['agreement']:.4f} | {row['multiply_adds']:.2f} "
                f"| {row['parameters']:.2f} | {row['seconds']:.1f} | {row['mib']} |"
            )
    seeds = [
        f"{labels[row['width']]} {', '.join(f'{ratio:.4f}' for ratio in row['mean_ratio_by_seed'].values())} on "
        f"{row['seeded_networks']} networks (worst network {row['min_ratio_of_all_seeds']:.4f})"
        for row in found
        if row["method"] == LEARNED and row["mean_ratio_by_seed"]
    ]
    lines += [
        "",
        f"Three seeds of probes and steps, {LEARNED.removeprefix('kt_ray: ')}: {'; '.join(seeds)}.",
        "",
        f"{networks} (mean accuracy of the originals {mean:.4f}), 10,000 test images. "
        "Multiply-adds and parameters are of the whole network, over the original's; seconds are of the processor, for "
        "one network, MiB how far its memory rises for one of each depth. Images are of the user's data, beside the "
        "network.",
    ]
    return "\n".join(lines)


def by_kind(rows: list[Row], kinds: Sequence[Kind], method: str = LEARNED) -> str:
    """Return the mean and worst ratios and the seconds of a method for each kind of network."""
    parts = []
    for kind, width in itertools.product(kinds, ("half", "quarter")):
        group = [
            row
            for row in rows
            if kind_of(row) == kind and (row["width"], row["method"], row["seed"]) == (width, method, 0)
        ]
        ratios = [row["ratio"] for row in group]
        if group:
            seconds = statistics.mean(row["seconds"] for row in group)
            parts.append(f"{kind} {width} {statistics.mean(ratios):.4f} (worst {min(ratios):.4f}) in {seconds:.1f} s")
    return "; ".join(parts)


def kind_of(row: Row) -> Kind:
    """Return the kind of a row's network."""
    return Kind(row["depth"], row["first_width"])


def network_of(row: Row) -> tuple[Kind, int]:
    """Return the kind and the number of a row's network."""
    return kind_of(row), row["network"]


def headline(found: list[Row]) -> dict[str, float]:
    """Return the figures that documents cite."""
    by = {(row["width"], row["method"]): row for row in found}
    peers = [row for row in found if "kt_ray" not in row["method"] and row["method"] not in WITH_DATA]
    figures = {}
    for width in ("half", "quarter"):
        row = by[width, LEARNED]
        figures |= {f"{width}_mean_ratio": row["mean_ratio"], f"{width}_min_ratio": row["min_ratio"]}
        figures |= {
            f"{width}_seconds": row["seconds"],
            f"{width}_unlearned_mean_ratio": by[width, UNLEARNED]["mean_ratio"],
        }
        figures[f"best_peer_{width}_mean_ratio"] = max(peer["mean_ratio"] for peer in peers if peer["width"] == width)
        figures[f"fine_tuned_{width}_mean_ratio"] = by[width, "Torch-Pruning, fine-tuned"]["mean_ratio"]
    figures["quarter_learned_minus_unlearned"] = figures["quarter_mean_ratio"] - by["quarter", UNLEARNED]["mean_ratio"]
    return figures


def draw(found: list[Row]) -> None:
    """Draw accuracy against multiply-adds, one line a method: all of it, and the part above 0.9."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5))
    every, best = figure.subplots(1, 2)
    colours = iter(colormaps["tab20"].colors)
    for method in dict.fromkeys(row["method"] for row in found):
        rows = sorted((row for row in found if row["method"] == method), key=lambda row: row["multiply_adds"])
        if len(rows) < len(SHARES):
            continue  # not measured at every width
        style = "--" if method in WITH_DATA else "-" if "kt_ray" in method else ":"
        colour = next(colours)
        costs, ratios = [row["multiply_adds"] for row in rows], [row["mean_ratio"] for row in rows]
        for axes in (every, best):
            axes.plot(costs, ratios, style, marker="o", markersize=4, color=colour, label=method)
    every.set(xlabel="multiply-adds, over the original's", ylabel="accuracy over the original's", ylim=(0, 1.03))
    best.set(xlabel="multiply-adds, over the original's", ylim=(0.9, 1.015))
    for axes in (every, best):
        axes.grid(alpha=0.3)
    best.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})
