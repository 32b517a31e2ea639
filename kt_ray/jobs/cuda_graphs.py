"""Steps that a CUDA device repeats from a recording (a CUDA graph), so that the host launches nothing again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kt_ray._io.text import first_line
from kt_ray.jobs.device import is_device_broken

logger = logging.getLogger(__name__)
WARM_UP = 2  # calls before anything is recorded, in which libraries make their handles and workspaces
Step = Callable[..., Sequence[Tensor]]


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

    def __init__(self) -> None:
        self.calls = 0
        self.recordings: dict[Hashable, Recording | None] = {}
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: Hashable, step: Step, *inputs: Tensor) -> list[Tensor]:
        """Return what `step` gives for `inputs`; the next call, of any key, may overwrite it."""
        self.calls += 1
        if self.calls <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = list(step(*inputs))
            torch.cuda.current_stream().wait_stream(self.stream)
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
            if isinstance(error, torch.OutOfMemoryError) or is_device_broken(error):
                raise
            logger.warning("a step cannot be recorded and is launched each time: %s", first_line(error))
            return None
        return Recording(graph, kept, outputs)
