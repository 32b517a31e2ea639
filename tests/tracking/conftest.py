"""A real SQLite store, made once: its tables take seconds to make."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kt_ray.networks import State
from kt_ray.tracking.promotion import Candidate, ChampionResult, Measured, register_champion
from kt_ray.tracking.store import open_store
from kt_ray.tracking.tracker import Tracker
from tests.tracking.servers import Gate, mlflow_server

NAME = "kt-translator"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with tables and nothing in them."""
    path: Path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_uri(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a database of this test's own."""
    return f"sqlite:///{shutil.copyfile(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def tracker(store_uri: str, tmp_path: Path) -> Tracker:
    """A tracker on a database of this test's own."""
    return Tracker(store_uri, "kt_ray", (tmp_path / "artifacts").as_uri())


class Halving(nn.Module):
    """A small translator: the first half of each tensor's rows, by a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, source: State) -> State:
        return {name: value[:, : value.shape[1] // 2] * self.factor for name, value in source.items()}


@pytest.fixture
def translator() -> Halving:
    return Halving()


@pytest.fixture
def example() -> State:
    """A stack of three source blocks of 8 + 24 parameters."""
    generator = torch.Generator().manual_seed(0)
    return {
        "conv1.weight": torch.randn(3, 4, 2, generator=generator),
        "conv2.weight": torch.randn(3, 6, 2, 2, generator=generator),
    }


@pytest.fixture
def candidate(tracker: Tracker, translator: nn.Module, example: State, tmp_path: Path) -> Callable[..., Candidate]:
    """A translator whose file differs by `number`; on test it is a point worse than on selection."""
    study = tracker.study_run("s", {}, {})

    def make(number: int, accuracy: float, *, module: nn.Module = translator, **changed: Any) -> Candidate:
        file = tmp_path / f"{number}.safetensors"
        save_file({"factor": torch.tensor([float(number)])}, file)
        measured = {
            "on": "zoo",
            "fingerprint": "zoo1",
            "protocol": "3 selection members, 500 selection images abc",
            "selection": accuracy,
            "test": accuracy - 0.01,
        } | changed
        return Candidate(
            file=file,
            module=module,
            example=example,
            study="s",
            trial=number,
            run_id=tracker.trial_run(study, "s", number, {}, {}),
            measured=Measured(**measured),
            evaluation={"rows": [{"name": "translated", "mean": measured["test"]}]},
            card="# A translator\n",
        )

    return make


@pytest.fixture
def register(tracker: Tracker, candidate: Callable[..., Candidate]) -> Callable[..., ChampionResult]:
    """Register the `candidate` of the same arguments."""

    def run(number: int, accuracy: float, *, accept_weak: bool = False, **changed: Any) -> ChampionResult:
        return register_champion(tracker, NAME, candidate(number, accuracy, **changed), accept_weak=accept_weak)

    return run


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("server"), empty_store) as address:
        yield address


@pytest.fixture
def gate(server: str) -> Iterator[Gate]:
    """A port before the server that can be closed."""
    gate = Gate(server)
    yield gate
    gate.close()
