"""Model cards: Markdown with the front matter of Hugging Face's hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from kt_ray.translation.checkpoint import LoadedTranslator

TASK = "weight-translation"  # none of the hub's own tasks
LICENSE = "apache-2.0"  # of the package; whoever publishes a translator may choose another
LOADING = """
## Loading

`kt_ray.load("DIRECTORY")` reads this directory; `kt-ray translate DIRECTORY CHECKPOINT -o OUT.safetensors` translates a
network with it.
"""


def front_matter(
    pair: str, dataset: str | None = None, accuracies: dict[str, float] | None = None, name: str = "translator"
) -> str:
    """Return the YAML block at the head of a card: license, library, tags, dataset, metric and results.

    `accuracies` are mean accuracies of networks with translated blocks, by split.
    """
    content: dict[str, Any] = {
        "license": LICENSE,
        "library_name": "kt_ray",
        "tags": ["knowledge-translation", "model-compression", pair, "arxiv:2401.05772"],
        "metrics": ["accuracy"],
    }
    if dataset:
        content["datasets"] = [dataset]
    if accuracies:
        results = [
            {
                "task": {"type": TASK, "name": "Knowledge Translation"},
                "dataset": {"name": dataset or "unknown", "type": dataset or "unknown", "split": split},
                "metrics": [
                    {"type": "accuracy", "value": round(value, 6), "name": f"mean accuracy on {split} members"}
                ],
            }
            for split, value in accuracies.items()
        ]
        content["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def card(loaded: LoadedTranslator) -> str:
    """Return the card of a translator that `save_pretrained` writes."""
    accuracy, pair = loaded.extra.get("metrics", {}).get("accuracy_mean"), loaded.architecture.pair
    rows = "".join(f"| {row['']} | {row['value']} |\n" for row in loaded.display_rows())
    return (
        f"{front_matter(pair, None, {'selection': float(accuracy)} if accuracy is not None else None)}\n"
        f"# Translator {pair}\n\n"
        "Reads the parameters of a trained source block and writes those of the target block (arXiv 2401.05772). It "
        "translates blocks of networks trained like those that it learned from.\n\n"
        f"| | |\n|---|---|\n{rows}{LOADING}"
    )
