"""A node tells if Ray counts more GPUs than torch sees."""

from __future__ import annotations

import pytest
import torch

from kt_ray.studies.node_probes import gpu_problems


def test_a_node_without_gpus_is_not_asked() -> None:
    assert gpu_problems(0) == []


def test_gpus_that_torch_does_not_see_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as Ray sets it for a task without GPUs
    seen = torch.cuda.device_count()
    assert gpu_problems(seen) == []
    (line,) = gpu_problems(64)
    assert "Ray counts 64 GPUs" in line
