"""Kernels come from Numba's cache, whoever compiled them: members must not depend on it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kt_ray.zoo.training import compiling

MEMBER = """
import hashlib, torch
from kt_ray.config import DatasetConfig, MemberCounts, PhaseConfig, RecipeConfig
from kt_ray.data import load_dataset
from kt_ray.networks import PaperArchitecture
from kt_ray.zoo import members
from kt_ray.zoo.training import compiling
from kt_ray.zoo.training import members as training
torch.set_num_threads(1)
dataset = load_dataset(DatasetConfig(train_images=256, selection_images=20))
phase = PhaseConfig(epochs=1, learning_rate=0.03, batch_size=64)
one = members.members_of(0, MemberCounts(train=1, selection=1, test=1))[:1]
recipe, architecture = RecipeConfig(source=phase, target=phase), PaperArchitecture("basic_to_simple")
stack, _ = training.train_members(one, recipe, architecture, dataset)
kernels = [value for module in compiling.MODULES for value in vars(module).values() if hasattr(value, "stats")]
print(sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels))
print(hashlib.sha256(b"".join(stack[name].numpy().tobytes() for name in sorted(stack))).hexdigest())
"""


def trained(cache: Path | None = None) -> list[str]:
    """Kernels that a process compiled itself, and the hash of the member that it trained."""
    environment = os.environ | ({} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})
    done = subprocess.run([sys.executable, "-c", MEMBER], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_nothing_is_compiled_where_it_is_used() -> None:
    assert trained()[0] == "0"


def test_a_compiler_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "_fingerprint", lambda: "of another machine")
    monkeypatch.setattr(compiling.sys, "executable", str(tmp_path / "no-python"))
    compiling.ensure.__wrapped__()
    assert "set NUMBA_CACHE_DIR" in caplog.text


def test_the_lock_outlives_a_killed_parent_while_its_compiler_works(tmp_path: Path) -> None:
    compiler, began = tmp_path / "compiler.sh", tmp_path / "pid"
    compiler.write_text(f"#!/bin/sh\necho $$ > {began}.new\nmv {began}.new {began}\nexec sleep 300\n")
    compiler.chmod(0o755)
    program = (
        f"from kt_ray.zoo.training import compiling; compiling.sys.executable = {str(compiler)!r}; compiling.ensure()"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while not began.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    try:
        with next(tmp_path.rglob("kt_ray.lock")).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(int(began.read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_a_member_is_the_same_whoever_compiled(tmp_path: Path) -> None:
    """With an empty cache, with a whole one, and with one that a process which died left half filled."""
    first, second = trained(tmp_path / "empty"), trained(tmp_path / "empty")
    half = tmp_path / "half"
    program = (
        "import numpy as np; from kt_ray.zoo.training import kernels; x = np.zeros((2, 6, 6, 4), 'f'); "
        "kernels.convolve(x, np.zeros((3, 2, 3, 3), 'f'), np.zeros((3, 4, 4, 4), 'f'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"NUMBA_CACHE_DIR": str(half)})
    assert first == second == trained(half)
