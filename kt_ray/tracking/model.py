"""A translator as an MLflow model: parameters in, parameters out, loadable without this package."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray._io.text import first_line
from kt_ray.networks import State
from kt_ray.tracking.store import quiet

TRANSLATOR_FILE = "translator.safetensors"
CARD_FILE = "README.md"

Layout = list[tuple[str, list[int]]]


class FlatTranslator(nn.Module):
    """A translator over flat rows: source blocks [N, P] → target blocks [N, Q], float32.

    MLflow's models take and give arrays, not mappings of tensors. Row i is the tensors of `source` (of `target` for
    the output), flattened and put one after another in that order.
    """

    def __init__(self, translator: Callable[[State], State], example: State) -> None:
        super().__init__()
        self.translator = translator
        self.source = layout(example)
        with torch.no_grad():
            self.target = layout(translator(example))

    def forward(self, parameters: Tensor) -> Tensor:
        source, start = {}, 0
        for name, shape in self.source:
            size = prod(shape)
            source[name] = parameters[:, start : start + size].reshape(-1, *shape)
            start += size
        return flat(self.translator(source))


def layout(stack: State) -> Layout:
    """Name and shape (without the leading N) of each tensor of a stack, in order."""
    return [(name, list(value.shape[1:])) for name, value in stack.items()]


def flat(stack: State) -> Tensor:
    """A stack of blocks as rows [N, P]."""
    return torch.cat([value.flatten(1) for value in stack.values()], dim=1)


def write_model(
    directory: Path,
    translator: nn.Module,
    example: State,
    translator_file: Path,
    card: str,
    model_id: str,
    run_id: str,
    metadata: Mapping[str, Any],
) -> str | None:
    """Write the MLflow model into the new `directory`, with the translator's safetensors file and its card beside it.

    The model is PyTorch's exported graph (pt2, no pickle) with signature and input example; `example` is a stack of
    source blocks. Returns None, or why the translator cannot be exported: the model then is its safetensors file.
    """
    with quiet():
        from mlflow.models import Model

        model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id, metadata=dict(metadata))
        reason = _export(directory, translator, example, model)
        if reason:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id, metadata=dict(metadata))
            model.save(str(directory / "MLmodel"))
    shutil.copyfile(translator_file, directory / TRANSLATOR_FILE)
    (directory / CARD_FILE).write_text(card, encoding="utf-8")
    return reason


def _export(directory: Path, translator: nn.Module, example: State, model: Any) -> str | None:
    """MLflow's PyTorch flavour in `directory`; None, or the first line of why torch cannot export the translator."""
    if getattr(translator, "refiner", None) is not None:  # the tracer finds out only after minutes
        return "refinement takes gradients, which torch.export does not trace"
    if getattr(translator, "projector", None) is not None:
        return "the projected block depends on which units are alive, which torch.export does not trace"
    import mlflow.pytorch
    from mlflow.models import infer_signature

    example = {name: value.detach().cpu().float() for name, value in example.items()}
    if len(next(iter(example.values()))) < 2:  # torch.export would fix a batch of one for ever
        example = {name: torch.cat([value, value]) for name, value in example.items()}
    was_training = translator.training
    translator.eval()
    try:
        module = FlatTranslator(translator, example).eval()
        rows = flat(example)
        with torch.no_grad():
            outputs = module(rows)
        model.metadata = (model.metadata or {}) | {"source": module.source, "target": module.target}
        mlflow.pytorch.save_model(
            module,
            str(directory),
            mlflow_model=model,
            signature=infer_signature(rows.numpy(), outputs.numpy()),
            input_example=rows.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
        )
        _check(directory, rows, outputs)
    except Exception as error:  # torch.export raises whatever its tracer meets; the safetensors file stands beside it
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        translator.train(was_training)
    return None


def _check(directory: Path, rows: Tensor, outputs: Tensor) -> None:
    """Raises ValueError where the exported graph gives something else, or takes only as many blocks as its example."""
    exported = torch.export.load(directory / "data" / "model.pt2").module()
    again = exported(torch.cat([rows, rows[:1]]))
    if not torch.allclose(again, torch.cat([outputs, outputs[:1]]), rtol=1e-3, atol=1e-5):
        raise ValueError("the exported graph gives other blocks than the translator")
