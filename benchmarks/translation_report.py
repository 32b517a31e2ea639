"""Tables of `benchmarks/translation.py`."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.results import write
from safetensors.torch import load_file
from translation_arms import ARMS, added

from kt_ray.config.trial import LOGIT_TERMS, OUTPUT_TERMS
from kt_ray.data import Dataset
from kt_ray.networks import State
from kt_ray.translation.checkpoint import load_translator
from kt_ray.translation.evaluation import Evaluation, Row, evaluate
from kt_ray.translation.transplants import translate
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

Run = dict[str, Any]
TESTED = "test.json"  # in a run's folder: its row on the test images
COLUMNS = (
    "arm",
    "built on: sets",
    "images",
    "training members",
    "seeds",
    "mean accuracy",
    "±",
    "worst member",
    "mean ratio",
    "worst ratio",
    "fit: training members",
    "steps × batch",
    "training CPU minutes",
    "seconds a translation",
)
NOTE = (
    "Ratios are to the trained target's mean; seconds are processor seconds in batches. Images: `loss` where training "
    "images are in the loss while the translator trains; `strokes` (drawn from no data) and `mixture` (of Gaussians "
    "fitted to training images) where synthetic images take part in translating."
)


def report(
    name: str, work: Path, uri: str, zoo: Zoo, dataset: Dataset, files: dict[str, str], fit_steps: int
) -> Evaluation:
    """Evaluate all that is in the work directory on the test images, each run once, and write tables; the row
    `translated` is the run with the best mean on selection members and images."""
    runs: dict[str, Run] = {
        file.parent.name: json.loads(file.read_text()) for file in sorted(work.glob("*/result.json"))
    }
    if not runs:
        raise SystemExit(f"{work} holds no run; run some arms first")
    blocks: dict[str, State] = {label: load_file(work / label / "blocks.safetensors") for label in runs}
    held_out = zoo.where("test")
    blocks |= {label: translate(load_translator(Path(file)).translator, held_out) for label, file in files.items()}
    best = max(runs, key=lambda label: statistics.mean(runs[label]["selection"]))
    translator = load_translator(work / best / "translator.safetensors").translator
    seen = {label: Row(**json.loads((work / label / TESTED).read_text())) for label in runs if _tested(work / label)}
    others = {label: block for label, block in blocks.items() if label not in seen}
    evaluation = evaluate(translator, zoo, dataset, fit_steps=fit_steps, others=others)
    for label in runs.keys() - seen.keys():
        (work / label / TESTED).write_text(json.dumps(vars(evaluation.row(label))))
    evaluation = replace(evaluation, rows=(*evaluation.rows, *seen.values()))
    groups = _groups(runs)
    table = _plain(evaluation, set(blocks))
    chosen = f"`translated` below is the run with the best mean on selection members and selection images: {best}."
    text = "\n".join([*_arms_table(runs, groups, files, evaluation), "", f"{NOTE} {chosen}", "", table.to_markdown()])
    ceiling = evaluation.row("trained target").mean
    of_best = groups[runs[best]["arm"], runs[best]["training_members"]]
    headline = {
        "best_mean_ratio": statistics.mean(evaluation.row(label).mean for label in of_best) / ceiling,
        "best_min_ratio": min(evaluation.row(label).min for label in of_best) / ceiling,
    }
    faithful = groups.get(("faithful", max(run["training_members"] for run in runs.values())))
    if faithful:
        headline["faithful_mean_ratio"] = statistics.mean(evaluation.row(label).mean for label in faithful) / ceiling
    definition = ZooStore(uri).definition()
    results = {
        "zoo": {key: definition[key] for key in ("pair", "seed", "network", "recipe", "dataset")},
        "zoo_device_hours": ZooStore(uri).info().to_dict().get("device_hours"),
        "runs": runs,
        "evaluation": evaluation.to_dict(),
    }
    write(name, headline, results, sorted({run["seed"] for run in runs.values()}), text.rstrip())
    print(text)
    return table


def _tested(folder: Path) -> bool:
    """Whether an earlier report has run the test images through the blocks of this run."""
    return (folder / TESTED).is_file()


def _groups(runs: dict[str, Run]) -> dict[tuple[str, int], list[str]]:
    """Runs by arm and number of training members, in the order of the arms."""
    order = list(ARMS)
    groups: dict[tuple[str, int], list[str]] = {}
    for label, run in sorted(runs.items(), key=lambda item: (order.index(item[1]["arm"]), item[1]["training_members"])):
        groups.setdefault((run["arm"], run["training_members"]), []).append(label)
    return groups


def _arms_table(
    runs: dict[str, Run], groups: dict[tuple[str, int], list[str]], files: dict[str, str], evaluation: Evaluation
) -> list[str]:
    """A line of Markdown for each arm and number of training members, then for each of `files`."""
    ceiling = evaluation.row("trained target").mean
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for (arm, members), labels in groups.items():
        rows, group = [evaluation.row(label) for label in labels], [runs[label] for label in labels]
        means, worst = [row.mean for row in rows], min(row.min for row in rows)
        cells = [
            arm,
            added(arm),
            _images(group[0]),
            str(members),
            str(len(rows)),
            f"{statistics.mean(means):.4f}",
            _spread(means),
            f"{worst:.4f}",
            f"{statistics.mean(means) / ceiling:.4f}",
            f"{worst / ceiling:.4f}",
            f"{statistics.mean(run['training_members_mean'] for run in group):.4f}",
            f"{group[0]['steps']} × {group[0]['batch']}",
            f"{statistics.mean(run['training_cpu_seconds'] for run in group) / 60:.1f}",
            f"{statistics.mean(run['seconds'] for run in group):.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for label in files:
        row = evaluation.row(label)
        figures = [f"{row.mean:.4f}", "", f"{row.min:.4f}", f"{row.mean / ceiling:.4f}", f"{row.min / ceiling:.4f}"]
        lines.append(f"| {' | '.join([label, '', '', '', '1', *figures, '', '', '', ''])} |")
    return lines


def _images(run: Run) -> str:
    """Which images the translator of a run has to do with."""
    loss, refinement = run["config"]["loss"], run["config"]["translator"]["refinement"]
    used = ["loss"] if run["steps"] and any(loss[term] for term in OUTPUT_TERMS + LOGIT_TERMS) else []
    return ", ".join(used + ([refinement["images"]] if refinement["steps"] else [])) or "none"


def _plain(evaluation: Evaluation, left_out: set[str]) -> Evaluation:
    """The table without some of its rows."""
    rows: tuple[Row, ...] = tuple(row for row in evaluation.rows if row.name not in left_out)
    return replace(evaluation, rows=rows)


def _spread(values: list[float]) -> str:
    return f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
