"""Memory of a process and of the machine, in MiB."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def own_mib(status: str = "RssAnon") -> float:
    """Return the anonymous memory of this process; what it maps of an object store is not its own."""
    return _entry(Path("/proc/self/status"), status)


def resident_mib() -> float:
    """Return the resident memory of this process, mapped pages included."""
    return own_mib("VmRSS")


def peak_mib() -> float:
    """Return the most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def peak_above(found: dict[str, float], name: str) -> Iterator[None]:
    """Put into `found` how far the resident memory of this process rises meanwhile, in MiB. On Linux with glibc."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what was freed before would be used again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_mib()
    yield
    found[name] = own_mib("VmHWM") - before


def free_mib() -> float:
    """Return the memory of the machine that programs can still have."""
    return _entry(Path("/proc/meminfo"), "MemAvailable")


def _entry(path: Path, name: str) -> float:
    entries = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(entries[name].split()[0]) / 1024
