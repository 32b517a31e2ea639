"""Distributed hyperparameter search for Knowledge Translation (arXiv 2401.05772).

Importing `kt_ray` imports neither torch, Ray nor MLflow: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {  # each public name, and the module that it is in
    "KTError": "kt_ray.errors",
    "build_zoo": "kt_ray.studies.zoos",
    "evaluate": "kt_ray.studies.translators",
    "load": "kt_ray.studies.translators",
    "load_code": "kt_ray.studies.zoos",
    "load_dataset": "kt_ray.studies.zoos",
    "open_study": "kt_ray.studies.study",
    "open_zoo": "kt_ray.studies.zoos",
    "register": "kt_ray.registry",
    "resume": "kt_ray.studies.study",
    "run": "kt_ray.studies.study",
    "train": "kt_ray.studies.translators",
    "translate": "kt_ray.studies.translators",
}
__all__ = [
    "KTError",
    "__version__",
    "build_zoo",
    "evaluate",
    "load",
    "load_code",
    "load_dataset",
    "open_study",
    "open_zoo",
    "register",
    "resume",
    "run",
    "train",
    "translate",
]

if TYPE_CHECKING:
    from kt_ray.errors import KTError
    from kt_ray.registry import register
    from kt_ray.studies.study import open_study, resume, run
    from kt_ray.studies.translators import evaluate, load, train, translate
    from kt_ray.studies.zoos import build_zoo, load_code, load_dataset, open_zoo


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kt_ray' has no attribute {name!r}; public are: {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
