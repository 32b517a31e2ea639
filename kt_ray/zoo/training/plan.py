"""Which implementation trains members fastest on a device: measured once, remembered beside the zoos."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from kt_ray.config import RecipeConfig
from kt_ray.data import LabelledImages
from kt_ray.errors import ZooError
from kt_ray.jobs.cuda_graphs import WARM_UP, Recorder, can_record
from kt_ray.jobs.device import free_memory, native_bfloat16
from kt_ray.networks import AnyArchitecture, stacked
from kt_ray.zoo.filesystem import Files
from kt_ray.zoo.recipe import Draw, Order, epoch_of
from kt_ray.zoo.training import fused
from kt_ray.zoo.training.members import Plan, kept_variants
from kt_ray.zoo.training.objectives import Candidate, source_objective, target_objective
from kt_ray.zoo.training.optimizers import Parameters
from kt_ray.zoo.training.stacking import Implementation, can_group, fresh

FILE = "probe.json"
STEPS = 5
ON_A_CPU, MOST, FEW = 8, 512, 4  # members at once: on a CPU, at most, and when memory is measured
STEP_SHARE = 0.4  # of the free memory of a GPU, for a step
_PLAN = TypeAdapter(Plan)


def candidates(architecture: AnyArchitecture, device: str, phase: str, at_once: int) -> list[Candidate]:
    """What is worth measuring on `device` for one `phase` ("source" or "target"), with at most `at_once` members."""
    module = architecture.source_network() if phase == "source" else architecture.views()[0].target_block()
    if device == "cpu":
        covered = fused.supports_source if phase == "source" else fused.supports_target
        names: list[Implementation] = ["fused"] if covered(architecture) else []
        one_by_one = [Candidate(name, 1) for name in [*names, "loop"]]
        if native_bfloat16(device):
            one_by_one.append(Candidate("loop", 1, bfloat16=True))
        several = min(4, at_once)
        if several == 1:
            return one_by_one
        names += ["grouped", "unfold"] if can_group(module) else []
        return one_by_one + [Candidate(name, several) for name in [*names, "vmap"]]
    sizes = [size for size in (8, 32, 128, MOST) if size <= at_once] or [at_once]
    names = ["grouped", "channels_last", "unfold", "vmap"] if can_group(module) else ["vmap"]
    recorded = [Candidate(name, size, recorded=True) for size in sizes for name in names]
    largest = sizes[-1]
    rounded = [Candidate(name, largest, bfloat16=True, recorded=True) for name in names]
    return [*recorded, *rounded, Candidate(names[0], largest, compile=True)]


def measure(
    candidate: Candidate, phase: str, architecture: AnyArchitecture, data: LabelledImages, recipe: RecipeConfig
) -> float:
    """Seconds of one member's step: processor time on a CPU, which others' work does not spoil, else wall time."""
    device = data.images.device
    seeds = list(range(candidate.at_once))
    network = stacked.to(fresh(architecture.source_network, seeds), device)
    shift = recipe.shift if isinstance(recipe.shift, int) else recipe.shift[1]
    moved = RecipeConfig(horizontal_flip=recipe.horizontal_flip, shift=shift)
    if phase == "source":
        parameters, batch = Parameters(network), recipe.source.batch_size
        objective = source_objective(architecture, len(seeds), data, candidate)
    else:
        view, cut = architecture.seen(network)[0]
        parameters = Parameters(stacked.to(fresh(view.target_block, seeds), device))
        batch = recipe.target.batch_size
        objective = target_objective(view, stacked.surroundings(cut), data, kept_variants(recipe), candidate)
    draw = epoch_of([Order(seed, len(data), moved) for seed in seeds], device).batch(0, batch)
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    recorder = Recorder(device) if candidate.recorded and can_record(device) else None

    def step(rows: Tensor, flips: Tensor, shifts: Tensor) -> list[Tensor]:
        return [objective.gradient(parameters, Draw(rows, flips, shifts))]

    def seconds_of_a_step() -> float:
        began = clock()
        inputs = (draw.rows, draw.flips, draw.shifts)
        if recorder is None:
            step(*inputs)
        else:
            recorder("step", step, *inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    for _ in range(1 if recorder is None else WARM_UP + 1):
        seconds_of_a_step()
    return min(seconds_of_a_step() for _ in range(STEPS)) / len(seeds)


def choose(seconds: dict[str, dict[Candidate, float]]) -> Plan:
    """The implementations of both phases that together are the fastest, at one number of members and with one set of
    options: a plan is run as it was measured."""
    plans: dict[Plan, float] = {}
    for source, of_source in seconds["source"].items():
        for target, of_target in seconds["target"].items():
            if replace(target, implementation=source.implementation) == source:
                options = {**asdict(source), "source": source.implementation, "target": target.implementation}
                del options["implementation"]
                plans[Plan(**options)] = of_source + of_target
    if not plans:
        missing = [phase for phase, found in seconds.items() if not found]
        what = f"the {missing[0]} phase" if missing else "both phases at one number of members"
        raise ZooError(f"no implementation of {what} runs on this device; see the log for why")
    return min(plans, key=lambda plan: plans[plan])


def runs(plan: Plan, architecture: AnyArchitecture, device: str, at_once: int) -> bool:
    """Return whether `plan` is one of those that are measured on `device`."""
    return all(plan.of(phase) in candidates(architecture, device, phase, at_once) for phase in ("source", "target"))


def members_that_fit(architecture: AnyArchitecture, data: LabelledImages, recipe: RecipeConfig) -> int:
    """Return how many members to train at once on the device of `data`: a power of two, at most `MOST`.

    On a CPU, `ON_A_CPU`. On a GPU, as many as fit into `STEP_SHARE` of the free memory, by the memory that a step of
    few members and of twice as many is seen to take; the rest is for stem activations and evaluation.
    """
    device = data.images.device
    if device.type == "cpu":
        return ON_A_CPU
    network = architecture.source_network()
    implementation: Implementation = "grouped" if can_group(network) else "vmap"
    room, peaks = STEP_SHARE * free_memory(device), []
    for members in (FEW, 2 * FEW):
        torch.cuda.reset_peak_memory_stats(device)
        for phase in ("source", "target"):
            measure(Candidate(implementation, members), phase, architecture, data, recipe)
        peaks.append(torch.cuda.max_memory_allocated(device))
    a_member = max(1.0, (peaks[1] - peaks[0]) / FEW)
    shared = peaks[0] - FEW * a_member
    fit = (room - shared) / a_member
    return int(2 ** math.floor(math.log2(min(max(fit, 1), MOST))))


class ProbeMemory:
    """Plans found before, in `probe.json` in the directory that holds the zoos."""

    def __init__(self, zoo_uri: str) -> None:
        path, mark, query = zoo_uri.partition("?")
        self.files = Files((path.rstrip("/").rpartition("/")[0] or "/") + mark + query)

    @staticmethod
    def key(architecture: AnyArchitecture, recipe: RecipeConfig, at_once: int, device: str) -> str:
        """What a plan depends on."""
        sizes = (recipe.source.batch_size, recipe.target.batch_size, at_once)
        moved = "".join([" shifted" if recipe.shift else "", "" if kept_variants(recipe) else " live stem"])
        return f"{device} torch {torch.__version__} {architecture!r} {sizes}{moved}"

    def recall(self, key: str) -> Plan | None:
        """Return the plan under `key`; None if there is none, or what the file holds is no plan."""
        content = self._content()
        try:
            plan: Plan = _PLAN.validate_json(json.dumps(content[key]), strict=True)
            return plan if asdict(plan) == content[key] else None
        except (ValueError, KeyError):
            return None

    def keep(self, key: str, plan: Plan) -> None:
        """Remember `plan`; if that cannot be written, it is measured again next time."""
        with suppress(ZooError):
            self.files.write(FILE, json.dumps(self._content() | {key: asdict(plan)}, indent=1).encode())

    def _content(self) -> dict[str, Any]:
        """Return the plans by their keys; a file that is no such mapping counts for nothing and is written anew."""
        try:
            content = json.loads(self.files.read(FILE))
        except (OSError, ValueError, RecursionError, ZooError):
            return {}
        return content if isinstance(content, dict) else {}
