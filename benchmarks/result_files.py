"""The files that benchmarks write: results with what made them, and a table beside them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("kt_ray", "torch", "torchvision", "numpy", "optuna")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and what else the machine was doing."""
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
    """The command line that runs; of folders of this machine, only their names."""
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return "python " + shlex.join(["benchmarks/" + Path(sys.argv[0]).name, *arguments])


def commit() -> str | None:
    """The commit of this repository, with `+` where its code was changed since; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        code = [*git, "diff", "--quiet", "HEAD", "--", ":/kt_ray", ":/benchmarks/*.py"]
        return head.stdout.strip() + ("+" if subprocess.run(code, check=False).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance() -> dict[str, Any]:
    """What made a result: machine, versions, commit, command, date."""
    return {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write(name: str, headline: dict[str, float], results: dict[str, Any], seeds: list[int], table: str) -> None:
    """`results/<name>.json` and `results/<name>.md`."""
    content = {"headline": headline, "results": results, "seeds": seeds} | provenance()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(f"{table}\n\n`{content['command']}`, {content['date']}\n")
