"""Translators over rows of numbers, as MLflow's models take and give them, and the loader of those torch cannot export.

MLflow's pyfunc flavour calls the loader (`loader_module`). The model's folder holds this package's code, so kt_ray need
not be installed to load it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kt_ray.networks import State
from kt_ray.translation.checkpoint import load_translator

BLOCKS = 32  # translated at once
FILE, LAYOUT = "translator.safetensors", "layout.json"
Layout = Sequence[tuple[str, Sequence[int]]]


class FlatTranslator(nn.Module):
    """A translator over flat rows: source blocks [N, P] → target blocks [N, Q], float32.

    Row i is the tensors of `source` (of `target` for the output), flattened and put one after another in that order.
    """

    def __init__(self, translator: Callable[[State], State], source: Layout, target: Layout) -> None:
        super().__init__()
        self.translator = translator
        self.source, self.target = source, target

    def forward(self, parameters: Tensor) -> Tensor:
        written = self.translator(unflat(parameters, self.source))
        return flat({name: written[name] for name, _ in self.target})


def layout(stack: State) -> list[tuple[str, list[int]]]:
    """Return name and shape (without the leading N) of each tensor of a stack, in order."""
    return [(name, list(value.shape[1:])) for name, value in stack.items()]


def flat(stack: State) -> Tensor:
    """Return a stack of blocks as rows [N, P]."""
    return torch.cat([value.flatten(1) for value in stack.values()], dim=1)


def unflat(rows: Tensor, names: Layout) -> State:
    """Return the stack whose tensors, flattened, are `rows` [N, P]."""
    parts = torch.split(rows, [prod(shape) for _, shape in names], dim=1)
    return {name: part.reshape(-1, *shape) for part, (name, shape) in zip(parts, names, strict=True)}


class TranslatorModel:
    """The model behind `mlflow.pyfunc.load_model`: rows of source blocks to rows of target blocks."""

    def __init__(self, directory: Path) -> None:
        translator = load_translator(directory / FILE).translator
        layout = json.loads((directory / LAYOUT).read_text(encoding="utf-8"))
        self.module = FlatTranslator(translator, layout["source"], layout["target"]).eval()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Translate `data` [N, P], float, to [N, Q]."""
        rows = torch.as_tensor(np.asarray(data, dtype=np.float32))
        with torch.no_grad():
            return torch.cat([self.module(part) for part in torch.split(rows, BLOCKS)]).numpy()


def _load_pyfunc(path: str) -> TranslatorModel:
    """Load the model whose data are in the directory `path`."""
    return TranslatorModel(Path(path))
