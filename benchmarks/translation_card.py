"""The translator that ships: a run of `benchmarks/translation.py` put into the package, with its model card."""

from __future__ import annotations

import json
from pathlib import Path

from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.evaluation import Evaluation


def ship(folder: Path, evaluation: Evaluation) -> None:
    """Put the translator of a run into the package, with a model card made of its results."""
    run = json.loads((folder / "result.json").read_text())
    loaded = load_translator(folder / "translator.safetensors")
    target = TRANSLATORS.directory / f"{loaded.architecture.pair}{TRANSLATORS.suffix}"
    extra = {key: value for key, value in loaded.extra.items() if key != "seed"} | {
        "license": "Apache-2.0",
        "trial": run["config"],
    }
    save_translator(target, loaded.translator, loaded.config, loaded.architecture, extra)
    refinement, ceiling, row = loaded.config.refinement, evaluation.row("trained target"), evaluation.row("translated")
    drawn = {
        "strokes": "random strokes (a few curves each, drawn from no data)",
        "mixture": f"a mixture of Gaussians that was fitted to the training images of {evaluation.dataset}",
    }[refinement.images]
    learned = (
        "Nothing in it was learned from the zoo."
        if run["steps"] == 0
        else f"Where they begin was learned from {run['training_members']} training members ({run['arm']})."
    )
    starts = (
        f"They begin at {refinement.starts} blocks, of which the best after an eighth of the steps goes on."
        if refinement.starts > 1
        else ""
    )
    target.with_suffix(".md").write_text(
        CARD.format(
            pair=loaded.architecture.pair,
            arm=run["arm"],
            network=loaded.architecture.network,
            drawn=drawn,
            shape="×".join(map(str, loaded.architecture.image_shape)),
            steps=refinement.steps,
            learned=learned,
            probes=refinement.probes * refinement.probe_sets,
            dataset=evaluation.dataset,
            starts=starts,
            matched=", in the last steps also that of predictions" if refinement.predictions else "",
            mean=row.mean / ceiling.mean,
            least=row.min / ceiling.mean,
            table=evaluation.to_markdown(),
        ),
        encoding="utf-8",
    )


CARD = """# Translator {pair}

Writes the small block of `{pair}` for a large one ({network}; images {shape}).
The arm "{arm}" of `benchmarks/translation.py`; machine, recipe of the zoo and command stand in
`benchmarks/results/translation.json`.

How it works: {steps} steps of Adam on {probes} synthetic images that it carries, drawn from {drawn}.
They are run through the user's own stem, block and head; the error is that of the head's input and of the
logits{matched}. {starts}
{learned} Translating needs no data, but it does need the stem and the head around the block, and it runs the
network.

Mean accuracy {mean:.3f} of the trained target's, worst member {least:.3f} of it, on

{table}
On members that no report had seen: `benchmarks/results/translation_fresh.md`.

Limits: images like those of {dataset} and this architecture. License: Apache-2.0.
"""
