"""What Ray says of a lost worker, in one line."""

from __future__ import annotations

import pytest

from kt_ray.search.worker_loss import why_lost


@pytest.mark.parametrize(
    ("words", "reason", "infrastructure"),
    [
        (
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
            "out of memory",
            True,
        ),
        ("The actor died because its node has died. Its actor's node was terminated", "node lost", True),
        ("The actor died unexpectedly before finishing this task.", "worker lost", True),
        ("The actor died because of an error raised in its creation task\nImportError: no", "its worker could", False),
    ],
)
def test_lost_workers_are_named(words: str, reason: str, infrastructure: bool) -> None:
    said, machine = why_lost(words)
    assert said.startswith(reason)
    assert machine is infrastructure
