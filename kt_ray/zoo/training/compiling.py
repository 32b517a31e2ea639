"""Kernels are compiled in a process of their own, once a machine, and everywhere else come from Numba's cache.

A process that compiles a kernel itself joins it with those it calls in another way than the cache does, and its sums
round otherwise: members would depend on which process happened to compile.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numba
import torch

from kt_ray._compat.numba import cache_directory
from kt_ray.config import PairName
from kt_ray.zoo.training import gather_kernels, head_kernels, kernels, relu_kernels

logger = logging.getLogger(__name__)
VARIABLE = "KT_RAY_COMPILES"  # set in the process that compiles
LONGEST = 900.0  # seconds; it takes about 30
PAIRS: tuple[PairName, ...] = ("basic_to_simple", "basic_to_biased")  # those whose targets kernels cover
MODULES = (kernels, head_kernels, gather_kernels, relu_kernels)


@functools.cache
def ensure() -> None:
    """Wait until the cache has every kernel, compiling them if nobody has.

    Where no cache can be kept, or its process fails, that is told and kernels are compiled by those who call them.
    """
    if VARIABLE in os.environ:
        return
    directory = cache_directory(kernels.convolve)
    mark = directory / f"kt_ray-{_fingerprint()}.compiled"
    if mark.exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "kt_ray.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not mark.exists():
                command = [sys.executable, "-m", "kt_ray.zoo.training.compiling"]
                environment = os.environ | {VARIABLE: "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                subprocess.run(
                    command,
                    check=True,
                    capture_output=True,
                    env=environment,
                    timeout=LONGEST,
                    pass_fds=[lock.fileno()],  # held until both have ended: a killed parent leaves the other compiling
                )
                mark.touch()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "%s cannot keep compiled kernels (%s): members may differ in their last digits from process to process; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            directory,
            error,
        )


def compile_all() -> None:
    """Call every kernel with every type of argument that training gives it."""
    from kt_ray.config import DatasetConfig, MemberCounts, PhaseConfig, RecipeConfig
    from kt_ray.data import Dataset, LabelledImages
    from kt_ray.networks import PaperArchitecture
    from kt_ray.zoo.members import members_of
    from kt_ray.zoo.training.members import Plan, train_members

    images = LabelledImages(torch.zeros(40, 1, 28, 28, dtype=torch.uint8), torch.arange(40) % 10)
    dataset = Dataset(DatasetConfig(), images, images, images, "")
    phase = PhaseConfig(epochs=3, batch_size=16)
    members = members_of(0, MemberCounts(train=1, selection=1, test=1))[:1]
    for shift in (0, 1):  # with a shift, stem activations are computed at every step; without, kept
        recipe = RecipeConfig(source=phase, target=phase, shift=shift)
        for pair in PAIRS:
            train_members(members, recipe, PaperArchitecture(pair), dataset, plan=Plan())


def _fingerprint() -> str:
    """Return a hash of what Numba's cache depends on: source files, versions, processor."""
    files = [Path(str(module.__file__)).stat() for module in MODULES]
    facts = (
        [(file.st_mtime_ns, file.st_size) for file in files],
        numba.__version__,
        sys.version,
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    compile_all()
