"""Standard output is never trusted: whatever it is, a command ends in order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("redirection", "encoding", "status", "lines"),
    [
        (">&-", "utf-8", 0, 0),
        ("2>&- >/dev/null", "utf-8", 0, 0),
        ("> /dev/null", "latin-1", 0, 0),
        ("> /dev/full", "utf-8", 2, 1),
    ],
)
def test_any_output_ends_in_order(redirection: str, encoding: str, status: int, lines: int) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = f'"{sys.executable}" -m kt_ray spaces show quickstart {redirection}'
    ended = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert len(ended.stderr.splitlines()) == lines
