"""Steps that a CUDA device repeats from a recording (a CUDA graph), so that the host launches nothing again."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kt_ray._io.text import first_line
from kt_ray.jobs.device import is_device_broken, is_out_of_memory

logger = logging.getLogger(__name__)
WARM_UP = 2  # calls with a key before it is recorded: what is made once is made then, outside of a graph's memory
FIRST_TORCH = (2, 12)  # of which a failed recording leaves the memory of others as it was
Step = Callable[..., Sequence[Tensor]]


def can_record(device: torch.device | str) -> bool:
    """Return whether steps on `device` can be recorded: a CUDA device, and a version of torch that recovers if not."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return torch.device(device).type == "cuda" and version >= FIRST_TORCH


@dataclass(frozen=True)
class Recording:
    """A graph, the tensors that it reads as its inputs, and those that it leaves its results in."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class Recorder:
    """Calls steps on a CUDA device, each recorded once and replayed from then on.

    A step is a function of tensors that returns tensors. What else it reads and writes must stay at its place in
    memory, numbers of the host are those of the recorded call, it draws nothing, and it must not wait for the device.
    It is known by a key: the same key means the same function, and inputs of the same shapes and types. A step that
    cannot be recorded is launched anew at every call, after a warning.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: Counter[Hashable] = Counter()
        self.recordings: dict[Hashable, Recording | None] = {}
        self.stream = _stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: Hashable, step: Step, *inputs: Tensor) -> list[Tensor]:
        """Return what `step` gives for `inputs`; the next call, of any key, may overwrite it."""
        self.calls[key] += 1
        if self.calls[key] <= WARM_UP:
            current = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                outputs = list(step(*inputs))
            current.wait_stream(self.stream)
            return outputs
        if key not in self.recordings:
            self.recordings[key] = self._record(step, inputs)
        recording = self.recordings[key]
        if recording is None:
            return list(step(*inputs))
        for kept, value in zip(recording.inputs, inputs, strict=True):
            kept.copy_(value)
        recording.graph.replay()
        return recording.outputs

    def _record(self, step: Step, inputs: Sequence[Tensor]) -> Recording | None:
        """Record `step`, which does not carry it out; None if that fails."""
        kept, graph = [value.clone() for value in inputs], torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, "thread_local"):
                outputs = list(step(*kept))
        except RuntimeError as error:
            if is_out_of_memory(error) or is_device_broken(error):
                raise
            logger.warning("a step cannot be recorded and is launched each time: %s", first_line(error))
            return None
        return Recording(graph, kept, outputs)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which steps are recorded: libraries keep a workspace for each stream they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
