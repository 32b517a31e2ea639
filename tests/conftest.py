"""What tests share: real digits, a zoo of fresh networks, one Ray session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own advice against its warning

import pytest
import torch

from kt_ray.config import DatasetConfig, MemberCounts
from kt_ray.data import Dataset, load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.training import compiling
from kt_ray.zoo.untrained import untrained_zoo

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Before there are workers: the kernels that all share, and the Ray token of this user, which each would write."""
    if hasattr(config, "workerinput"):
        return
    if getattr(config.option, "numprocesses", None):
        compiling.ensure()
    if not (Path.home() / ".ray" / "auth_token").exists():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, capture_output=True, check=False)  # where it cannot, Ray says so when it starts


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Real digits, few of them: 512 training, 128 selection, 1,000 test images."""
    return load_dataset(DatasetConfig(name="mnist5k", train_images=512, selection_images=128))


@pytest.fixture(scope="session")
def random_zoo() -> Zoo:
    """Untrained networks: 8 training, 2 selection, 3 test members."""
    return untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=3))


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one Ray session of the tests: two CPUs, no dashboard."""
    import ray

    from kt_ray.config import RayConfig
    from kt_ray.jobs.connection import connected

    assert not ray.is_initialized()
    with connected(RayConfig(cpus=2)):
        yield


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace directory."""
    return tmp_path / "workspace"
