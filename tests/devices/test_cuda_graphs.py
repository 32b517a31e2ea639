"""Steps of a device are recorded once and replayed."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from kt_ray.jobs.cuda_graphs import WARM_UP, Recorder
from tests.devices.pretended import CUDA, pretended_cuda


def test_a_step_is_carried_out_at_each_call() -> None:
    """It adds to a tensor of its own and returns twice its input; the recording itself changes nothing."""
    calls = []
    with pretended_cuda() as device:
        total, recorder = torch.zeros(2, device="cuda"), Recorder(CUDA)

        def step(x: Tensor) -> list[Tensor]:
            calls.append(x)
            total.add_(x)
            return [x * 2]

        found = [recorder("key", step, torch.full((2,), float(n), device="cuda"))[0].tolist() for n in range(6)]
        assert total.tolist() == [15.0, 15.0]
    assert found == [[2.0 * n] * 2 for n in range(6)]
    assert (len(calls), device.replays) == (WARM_UP + 1, 6 - WARM_UP)


def test_a_step_that_waits_is_launched_each_time(caplog: pytest.LogCaptureFixture) -> None:
    with pretended_cuda() as device, caplog.at_level(logging.WARNING):
        recorder, x = Recorder(CUDA), torch.arange(3.0, device="cuda")
        found = [recorder("key", lambda x: [x / float(x.sum())], x)[0].tolist() for _ in range(5)]
    assert found == [pytest.approx([0, 1 / 3, 2 / 3])] * 5
    assert device.replays == 0
    assert [record.message for record in caplog.records] == [
        "a step cannot be recorded and is launched each time: aten._local_scalar_dense.default: operation not "
        "permitted when stream is capturing (read of a value)"
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: illegal")])
def test_lack_of_memory_and_a_broken_device_are_told(error: RuntimeError) -> None:
    calls: list[int] = []

    def step() -> list[Tensor]:
        calls.append(1)
        if len(calls) > WARM_UP:
            raise error
        return []

    with pretended_cuda():
        recorder = Recorder(CUDA)
        for _ in range(WARM_UP):
            recorder("key", step)
        with pytest.raises(type(error), match="CUDA"):
            recorder("key", step)
