"""CUDA graphs of the pretended device: operations are noted while a graph is recorded, and done when it is replayed.

As on a real device, a recorded step has no effect until it is replayed, reads and writes the tensors that it was
recorded with, and may neither wait for the device nor draw random numbers. Graphs share memory: a replay overwrites
all that was made while later ones were recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from kt_ray.jobs import cuda_graphs


class PretendedGraph:
    """What `torch.cuda.CUDAGraph` is."""

    def __init__(self):
        self.steps, self.before, self.made = [], {}, []

    def note(self, func, args, kwargs):
        """Carry out an operation on the tensors that lie beneath, to be undone when the recording ends."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._keep(argument, value)
        for argument in func._schema.arguments:
            self._keep(argument, kwargs.get(argument.name))
        out = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, out))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        self.made += [storage for storage in _storages(out) if storage.data_ptr() not in given]
        return out

    def _keep(self, argument, value):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if not (written or argument.name.startswith("running_")):
            return  # PyTorch's schemas do not say that batch norm writes its running statistics
        for storage in _storages(value):
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)
        self.overwrite()

    def overwrite(self):
        """Fill what was made during the recording with bytes that are NaN as floats."""
        for storage in self.made:
            storage.fill_(255)

    def replay(self):
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _storages(values):
    return [leaf.untyped_storage() for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def graph_patches(mode) -> list:
    """Replace what `torch.cuda` has for graphs and streams; `mode` is the pretended device."""

    graphs: list[PretendedGraph] = []

    @contextlib.contextmanager
    def recording(graph, pool=None, stream=None, capture_error_mode="global") -> Iterator[None]:
        mode.graph = graph
        graphs.append(graph)
        try:
            yield
        finally:
            mode.graph = None
            graph.undo()

    class Graph(PretendedGraph):
        def replay(self):
            mode.replays += 1
            with _disable_current_modes():
                super().replay()
                for later in graphs[graphs.index(self) + 1 :]:
                    later.overwrite()

    stream = mock.Mock()
    return [
        mock.patch.object(cuda_graphs, "FIRST_TORCH", (0, 0)),
        mock.patch.object(torch.cuda, "CUDAGraph", Graph),
        mock.patch.object(torch.cuda, "graph", recording),
        mock.patch.object(torch.cuda, "graph_pool_handle", return_value=(0, 0)),
        mock.patch.object(torch.cuda, "Stream", return_value=stream),
        mock.patch.object(torch.cuda, "current_stream", return_value=stream),
        mock.patch.object(torch.cuda, "stream", return_value=contextlib.nullcontext()),
    ]
