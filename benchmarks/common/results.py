"""The files that benchmarks write: results with what made them, and a table beside them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("kt_ray", "torch", "torchvision", "numpy", "ray", "optuna", "mlflow")


def write(
    name: str,
    headline: Mapping[str, float],
    results: Any,
    seeds: Sequence[int],
    table: str,
    folder: Path = RESULTS,
    **more: Any,
) -> None:
    """Write `<name>.json` and `<name>.md` into `folder`.

    Args:
        name: of the files.
        headline: the figures that documents cite. Their names become flat: "speedup, mirrored" is `speedup_mirrored`.
        results: everything behind them. Infinite numbers become null, as JSON has none.
        seeds: of everything random.
        table: Markdown.
        folder: where the files are stored.
        more: further entries of the JSON.
    """
    content = {"headline": flat(headline), "results": results} | more | {"seeds": list(seeds)} | provenance()
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / f"{name}.md").write_text(f"{table}\n\n`{content['command']}`, {content['date']}\n")


def flat(headline: Mapping[str, float]) -> dict[str, float]:
    """Return the headline with names of lower-case letters, digits and underscores alone."""
    return {re.sub(r"\W+", "_", name.lower()).strip("_"): value for name, value in headline.items()}


def provenance() -> dict[str, Any]:
    """Return what made a result: machine, versions, commit, command, date."""
    return {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, GPU and the load of other work."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def command() -> str:
    """Return the command line that runs; of folders of this machine, only their names."""
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return "python " + shlex.join(["benchmarks/" + Path(sys.argv[0]).name, *arguments])


def commit() -> str | None:
    """Return the commit of this repository, with `+` if its code was changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        code = [*git, "diff", "--quiet", "HEAD", "--", ":/kt_ray", ":/benchmarks/*.py"]
        return head.stdout.strip() + ("+" if subprocess.run(code, check=False).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return None
