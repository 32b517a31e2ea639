"""Write `docs/results.md`, and the results in README.md, from `benchmarks/results/*.json`.

    python docs/make_results.py            # write them
    python docs/make_results.py --check    # exit with status 1 if they are not what the result files say

Claims are the first paragraphs of the benchmarks' docstrings, figures the headlines of their result files: no figure in
these documents is typed by hand.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
MARKS = ("<!-- results:begin -->", "<!-- results:end -->")

# The results that the README shows: a claim, the result file, the headline's name, how the figure is printed.
SHOWN = (
    (
        "Mean accuracy with the bundled translator's block over that with a block trained in its place, on networks "
        "made after the translator (384 refinement steps on synthetic images)",
        "translation_fresh",
        "three_starts_384_steps_seed_2_ships_mean_ratio",
        "{:.3f}",
    ),
    (
        "The same for a translator that is one forward pass over the parameters, without refinement",
        "translation_fresh",
        "parameters_alone_eight_times_the_training_mean_ratio",
        "{:.3f}",
    ),
    (
        "The same with no image at all, given or carried: a learned network writes block inputs from the stem's "
        "parameters, and the block is fitted to them; the mean, and the worst network",
        "parameters_alone",
        "mean_ratio",
        "{:.3f}; {min_ratio:.3f}",
    ),
    (
        "The same within 5 and 50 ms a network, on images that the translator carries: learned; what the same closed "
        "forms reach unlearned",
        "frontier",
        "learned_at_5ms_mean_ratio",
        "{:.3f} and {learned_at_50ms_mean_ratio:.3f}; {unlearned_at_5ms_mean_ratio:.3f} and "
        "{unlearned_at_50ms_mean_ratio:.3f}",
    ),
    (
        "Accuracy of ResNets with every residual block halved, without retraining and without the user's images, over "
        "the original's: on probes like the dataset, in seconds of one core; on random shapes; the best other way "
        "without data",
        "whole_networks",
        "half_mean_ratio",
        "{:.4f} in {half_seconds:.1f} s; {half_unlearned_mean_ratio:.4f}; {best_peer_half_mean_ratio:.4f}",
    ),
    (
        "The same with a quarter of the hidden units",
        "whole_networks",
        "quarter_mean_ratio",
        "{:.4f} in {quarter_seconds:.1f} s; {quarter_unlearned_mean_ratio:.4f}; {best_peer_quarter_mean_ratio:.4f}",
    ),
    ("Training a zoo, against a plain PyTorch loop on the same two cores", "zoo_throughput", "speedup", "{:.1f}×"),
    (
        "Finished trials lost, and repeated, when searches are killed and resumed",
        "resume",
        "lost",
        "{:.0f} and {repeated:.0f} in {kills:.0f} kills",
    ),
    (
        "Device-hours until as good as random search without pruning: TPE with median pruning; random with the same",
        "search_quality",
        "device_hours_ratio_independent",
        "{:.2f}×; {device_hours_ratio_random_independent:.2f}×",
    ),
)

HEADER = """# Results

Every benchmark measures one claim and writes a result file with its command, seeds, versions, machine and date. This
page is written from these files by `python docs/make_results.py`; `make check` fails if they disagree. Times depend on
what else the machine did, so they are given as ratios of alternatives that were timed in turn.

| result | what is measured |
|---|---|
"""


def results() -> dict[str, dict[str, Any]]:
    """Return the result files by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((BENCHMARKS / "results").glob("*.json"))}


def script(result: dict[str, Any]) -> Path:
    """Return the benchmark that wrote a result."""
    return ROOT / shlex.split(result["command"])[1]


def claim(path: Path) -> list[str]:
    """Return the first sentence, and the rest of the first paragraphs, of a benchmark's docstring, as prose."""
    text = ast.get_docstring(ast.parse(path.read_text())) or path.stem
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if not part.startswith("    ")]
    return [paragraph.rstrip(":") for paragraph in paragraphs]


def number(value: float) -> str:
    """Print whole numbers whole, others with four digits."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine(result: dict[str, Any]) -> str:
    """Describe the machine as far as the file tells."""
    facts = result["machine"]
    cores = facts.get("cores", facts.get("cpus"))
    words = [re.sub(r"\(R\)", "", facts.get("processor") or "").strip(), f"{cores} cores" if cores else ""]
    if facts.get("gpu"):
        words.append(facts["gpu"])
    load = facts.get("load_average", facts.get("load"))
    if load:
        words.append(f"load average {load[0]:.1f}")
    return ", ".join(word for word in words if word)


def summary(name: str, result: dict[str, Any]) -> str:
    """Return what is measured: the benchmark's first line, or its name and arguments if it measures several things."""
    path = script(result)
    if name == path.stem:
        return claim(path)[0]
    return f"[{path.stem}](#{path.stem}) with `{shlex.join(shlex.split(result['command'])[2:])}`"


def section(name: str, result: dict[str, Any]) -> str:
    """Return the part of the page on one result."""
    path = script(result)
    prose = claim(path) if name == path.stem else [f"What [{path.stem}](#{path.stem}) measures, with other arguments."]
    lines = [f"## {name}", "", "\n\n".join(prose), "", "| figure | value |", "|---|---:|"]
    lines += [f"| {key.replace('_', ' ')} | {number(value)} |" for key, value in result["headline"].items()]
    seeds = ", ".join(map(str, result.get("seeds", [])))
    facts = [f"`{result['command']}`", f"seeds {seeds}" if seeds else "", machine(result), result["date"][:10]]
    if result.get("commit"):
        facts.append(f"commit {result['commit']}")
    lines += ["", "; ".join(fact for fact in facts if fact) + ".", ""]
    lines += [f"[Everything behind it](../benchmarks/results/{name}.md)"]
    return "\n".join(lines)


def page() -> str:
    """Return `docs/results.md`."""
    found = results()
    rows = [f"| [{name}](#{name}) | {summary(name, result)} |" for name, result in found.items()]
    return HEADER + "\n".join(rows) + "\n\n" + "\n\n".join(section(*item) for item in found.items()) + "\n"


def shown() -> str:
    """Return the README's results."""
    found = results()
    lines = ["| result | figure | |", "|---|---|---|"]
    for words, name, key, form in SHOWN:
        headline = found[name]["headline"]
        figure = form.format(headline[key], **headline)
        lines.append(f"| {words} | **{figure}** | [{name}](docs/results.md#{name}) |")
    return "\n".join(lines)


def between(text: str, marks: tuple[str, str], content: str) -> str:
    """Return `text` with what stands between two marks replaced."""
    before, _, rest = text.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    if not found:
        raise SystemExit(f"{README} has no {marks[0]} … {marks[1]}")
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{after}"


def main() -> int:
    """Write both documents, or compare them."""
    made = {PAGE: page(), README: between(README.read_text(), MARKS, shown())}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not what the result files say: python {sys.argv[0]}\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
