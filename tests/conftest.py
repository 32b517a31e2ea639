"""What tests share: real digits, a zoo of fresh networks, one Ray session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice against its warning

import pyarrow as pa
import pytest
import torch

from kt_ray.config import DatasetConfig, MemberCounts
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import Architecture, stacked
from kt_ray.zoo.members import Member, Zoo, members_of

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Real digits, few of them: 512 training, 128 selection, 1,000 test images."""
    return load_dataset(DatasetConfig(name="mnist5k", train_images=512, selection_images=128))


def make_random_zoo(architecture: Architecture | None = None, counts: MemberCounts | None = None) -> Zoo:
    """A zoo of fresh networks whose BN statistics are random too; no training. For structure, not for accuracy."""
    architecture = architecture or Architecture("basic_to_simple")
    members: list[Member] = members_of(0, counts or MemberCounts(train=8, selection=2, test=3))
    states = []
    for member in members:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(member.seed % 2**32)
            parts = {
                "stem": architecture.stem(),
                "source": architecture.source_block(),
                "target": architecture.target_block(),
                "head": architecture.head(),
            }
            for module in parts.values():
                for layer in module.modules():
                    if isinstance(layer, torch.nn.BatchNorm2d):
                        torch.nn.init.normal_(layer.running_mean, std=0.1)
                        torch.nn.init.uniform_(layer.running_var, 0.5, 2)
                        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
                        torch.nn.init.normal_(layer.bias, std=0.1)
        states.append(stacked.join(**{name: module.state_dict() for name, module in parts.items()}))
    index = pa.table(
        {
            "id": [member.id for member in members],
            "seed": pa.array([member.seed for member in members], pa.int64()),
            "split": [member.split for member in members],
            "epoch": pa.array([1] * len(members), pa.int32()),
            "has_target": [True] * len(members),
            "source_accuracy": [0.1] * len(members),
            "target_accuracy": [0.1] * len(members),
        }
    )
    return Zoo(architecture, stacked.stack(states), index, "random", "none")


@pytest.fixture(scope="session")
def random_zoo() -> Zoo:
    """Fresh networks: 8 training, 2 selection, 3 test members."""
    return make_random_zoo()


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one Ray session of the tests: two CPUs, no dashboard."""
    import ray

    from kt_ray.config import RayConfig
    from kt_ray.ray_cluster import connected

    assert not ray.is_initialized()
    with connected(RayConfig(cpus=2)):
        yield


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace directory."""
    return tmp_path / "workspace"
