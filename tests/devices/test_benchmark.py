"""The GPU benchmark starts anywhere, says why it skips, and runs on a device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.devices.pretended import pretended_cuda

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=True)
    assert "no CUDA device" in done.stdout


def test_it_runs_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    with pretended_cuda():
        found = gpu.measure("cuda", images=64, members=2, steps=1, rounds=1, blocks=4)
    assert found["device"] == "Pretended"
    assert min(found["seconds"].values()) > 0
