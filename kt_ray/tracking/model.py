"""A translator as an MLflow model: rows of source blocks in, rows of target blocks out, loadable with plain MLflow."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray._compat.mlflow import EXPORTED_GRAPH
from kt_ray._io.scratch import scratch_directory
from kt_ray._io.text import first_line
from kt_ray.networks import State
from kt_ray.tracking import pyfunc
from kt_ray.tracking.pyfunc import FlatTranslator, flat, layout
from kt_ray.tracking.store import quiet
from kt_ray.translation.card import front_matter
from kt_ray.translation.translator import Translator

TRANSLATOR_FILE = pyfunc.FILE
CARD_FILE = "README.md"
PACKAGE = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "pydantic", "PyYAML", "safetensors", "scipy")  # by the code that travels with a model

PLAIN = """
## Loading

`mlflow.pytorch.load_model` and `mlflow.pyfunc.load_model` load it with MLflow and PyTorch alone; kt_ray is not needed.
A row of its input is the tensors of a source block one after another, a row of its output those of the target block;
their names and shapes are `source` and `target` in the metadata of `MLmodel`.
"""
WITH_CODE = """
## Loading

`mlflow.pyfunc.load_model` loads it with MLflow; the code of kt_ray {version} that it runs is in `code/`, so kt_ray need
not be installed. torch cannot export it: {reason}. A row of its input is the tensors of a source block one after
another, a row of its output those of the target block; their names and shapes are `source` and `target` in the metadata
of `MLmodel`.
"""
FILE_ALONE = """
## Loading

`{file}` is read by kt_ray alone. torch cannot export it: {reason}.
"""


def write_model(
    directory: Path,
    module: nn.Module,
    example: State,
    translator_file: Path,
    card: str,
    model_id: str,
    run_id: str,
    facts: Mapping[str, Any],
) -> str | None:
    """Write the MLflow model into the new `directory`, with the translator's safetensors file and its card beside it.

    The model is PyTorch's exported graph (pt2, no pickle); a translator that torch cannot export is a pyfunc that reads
    its safetensors file with the code of kt_ray beside it. Either has a signature and an input example; `example` is a
    stack of source blocks. Returns None, or why the model was not exported; a module that is no `Translator` then is
    its file alone.
    """
    from mlflow.models import Model

    def new_model() -> Model:
        return Model(run_id=run_id, model_id=model_id, model_uuid=model_id, metadata=dict(facts))

    example = {name: value.detach().cpu().float() for name, value in example.items()}
    if len(next(iter(example.values()))) < 2:  # torch.export would fix a batch of one for ever
        example = {name: torch.cat([value, value]) for name, value in example.items()}
    module = copy.deepcopy(module).cpu().eval()
    with quiet(), torch.no_grad():
        target = layout(module(example))
        translator = FlatTranslator(module, layout(example), target).eval()
        reason = _not_exportable(module)
        if reason is None:
            reason = _export(directory, translator, flat(example), new_model())
        loading = PLAIN
        if reason is not None:
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(module, Translator):
                _with_code(directory, translator, flat(example), translator_file, new_model())
                loading = WITH_CODE.format(version=package_version(), reason=reason)
            else:
                directory.mkdir(parents=True)
                new_model().save(str(directory / "MLmodel"))
                loading = FILE_ALONE.format(file=TRANSLATOR_FILE, reason=reason)
    shutil.copyfile(translator_file, directory / TRANSLATOR_FILE)
    head = "" if card.startswith("---") or not isinstance(module, Translator) else _front_matter(module, facts)
    (directory / CARD_FILE).write_text(head + card.rstrip() + "\n" + loading, encoding="utf-8")
    return reason


def _front_matter(translator: Translator, facts: Mapping[str, Any]) -> str:
    """Return the head of a registered translator's card."""
    accuracies = {
        split: float(facts[f"kt_ray.{split}_accuracy"])
        for split in ("selection", "test")
        if f"kt_ray.{split}_accuracy" in facts
    }
    return front_matter(translator.architecture.pair, facts.get("kt_ray.dataset"), accuracies) + "\n"


def package_version() -> str:
    """Return the version of kt_ray; "unknown" if it is not installed."""
    try:
        return metadata.version("kt_ray")
    except metadata.PackageNotFoundError:
        return "unknown"


def _not_exportable(module: nn.Module) -> str | None:
    """Why torch cannot export `module`, as far as that is known before its tracer ends, after minutes."""
    if getattr(module, "refiner", None) is not None:
        return "refinement takes gradients, which torch.export does not trace"
    if getattr(module, "projector", None) is not None:
        return "the projected block depends on which units are alive, which torch.export does not trace"
    return None


def _export(directory: Path, module: FlatTranslator, rows: Tensor, model: Any) -> str | None:
    """MLflow's PyTorch flavour in `directory`; None, or the first line of why torch cannot export the translator."""
    import mlflow.pytorch
    from mlflow.models import infer_signature

    try:
        outputs = module(rows)
        model.metadata = (model.metadata or {}) | {"source": module.source, "target": module.target}
        mlflow.pytorch.save_model(
            module,
            str(directory),
            mlflow_model=model,
            signature=infer_signature(rows.numpy(), outputs.numpy()),
            input_example=rows.numpy(),
            serialization_format="pt2",
            pip_requirements=_requirements("torch", "numpy"),
        )
        _check(directory, rows, outputs)
    except Exception as error:  # torch.export raises whatever its tracer meets
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _check(directory: Path, rows: Tensor, outputs: Tensor) -> None:
    """Raises ValueError if the exported graph gives something else, or takes only as many blocks as its example."""
    exported = torch.export.load(directory / EXPORTED_GRAPH).module()
    again = exported(torch.cat([rows, rows[:1]]))
    if not torch.allclose(again, torch.cat([outputs, outputs[:1]]), rtol=1e-3, atol=1e-5):
        raise ValueError("the exported graph gives other blocks than the translator")


def _with_code(directory: Path, module: FlatTranslator, rows: Tensor, translator_file: Path, model: Any) -> None:
    """MLflow's pyfunc flavour in `directory`: the safetensors file, and the code that reads it."""
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    outputs = module(rows)
    names = {"source": module.source, "target": module.target}
    model.metadata = (model.metadata or {}) | names | {"kt_ray": package_version()}
    with scratch_directory() as scratch:
        data, code = scratch / "translator", scratch / PACKAGE.name
        data.mkdir()
        shutil.copyfile(translator_file, data / pyfunc.FILE)
        (data / pyfunc.LAYOUT).write_text(json.dumps(names), encoding="utf-8")
        shutil.copytree(PACKAGE, code, ignore=_all_but_modules)
        mlflow.pyfunc.save_model(
            str(directory),
            loader_module=pyfunc.__name__,
            data_path=str(data),
            code_paths=[str(code)],
            mlflow_model=model,
            signature=infer_signature(rows.numpy(), outputs.numpy()),
            input_example=rows.numpy(),
            pip_requirements=_requirements(*NEEDED),
        )


def _all_but_modules(directory: str, names: list[str]) -> list[str]:
    """Return the entries of `directory` that a model does not need: everything but Python's modules."""
    left_out = ("__pycache__", "pretrained", "cluster", "search_spaces")
    path = Path(directory)
    return [name for name in names if name in left_out or not ((path / name).is_dir() or name.endswith(".py"))]


def _requirements(*packages: str) -> list[str]:
    """The installed versions of `packages`, as pip takes them."""
    return [f"{package}=={metadata.version(package).split('+')[0]}" for package in packages]
