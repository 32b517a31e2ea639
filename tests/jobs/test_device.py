"""The device of a worker: told if it is missing, capped at its share, given up if it breaks."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch

from kt_ray.config import StudyConfig, validate
from kt_ray.errors import ConfigError, ResourceError
from kt_ray.jobs import device
from tests.devices.pretended import pretended_cuda


def test_without_gpus_a_worker_computes_on_the_cpu() -> None:
    assert device.open_device(0) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_worker_that_was_given_a_gpu_and_sees_none_says_so() -> None:
    with pytest.raises(ResourceError, match="sees none"):
        device.open_device(0.5)


@pytest.mark.parametrize("name", ["gpu", "cuda:63", "meta"])
def test_a_named_device_where_torch_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(ResourceError, match=f"^device '{name}' cannot be used here .*$"):
        device.use_device(name)


def test_a_named_device_is_used_as_workers_use_theirs() -> None:
    with pretended_cuda(), torch.backends.cudnn.flags(deterministic=False):
        assert device.use_device("cuda") == "cuda"
        assert torch.backends.cudnn.deterministic


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    with pretended_cuda(), mock.patch.object(torch.cuda, "set_per_process_memory_fraction") as cap:
        assert device.open_device(0.25) == "cuda"
        assert device.open_device(1) == "cuda"
    cap.assert_called_once_with(0.25)


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_a_sticky_error_ends_the_worker(error: Exception, broken: bool) -> None:
    with mock.patch.object(os, "_exit") as leave:
        device.end_if_device_broken(error)
    assert leave.called == broken


@pytest.mark.parametrize("path", ["search.resources", "zoo.actors"])
@pytest.mark.parametrize("gpus", [1.5, 2])
def test_more_gpus_than_one_are_refused(path: str, gpus: float) -> None:
    outer, inner = path.split(".")
    with pytest.raises(ConfigError, match=rf"{path}\.gpus: .*got {gpus}"):
        validate(StudyConfig, {"name": "s", outer: {inner: {"gpus": gpus}}})
