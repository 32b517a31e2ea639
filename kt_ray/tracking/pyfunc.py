"""The loader of registered translators that torch cannot export: MLflow's pyfunc flavour calls it (`loader_module`).

The model's folder holds this package's code, so kt_ray need not be installed to load it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kt_ray.tracking.flat import FlatTranslator
from kt_ray.translation.checkpoint import load_translator

BLOCKS = 32  # translated at once
FILE, LAYOUT = "translator.safetensors", "layout.json"


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
