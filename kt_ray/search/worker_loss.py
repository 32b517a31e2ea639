"""Why a worker is lost, from what Ray says of it."""

from __future__ import annotations


def why_lost(words: str) -> tuple[str, bool]:
    """What Ray's words about a lost worker come to, in one line, and whether the machine is to blame."""
    lowered = words.lower()
    # Ray's words about any lost worker name the OOM killer among common causes: only these mean that it was.
    if "outofmemoryerror" in lowered or "running low on memory" in lowered:
        return "out of memory: Ray's memory monitor killed the worker", True
    if "creation task" in lowered:
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        return f"its worker could not start: {lines[-1]}", False
    if "actor's node" in lowered or "node was terminated" in lowered or "node died" in lowered:
        return "node lost", True
    return "worker lost", True
