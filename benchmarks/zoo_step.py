"""Where a training step's time goes, beside PyTorch's step and beside the arithmetic alone.

One thread, the paper's network, batch 128. The arithmetic's time is what the step's multiply-adds would take at the
rate of a large matrix product on the same core, measured in the same run; forward, gradients by inputs and gradients
by kernels count once each (the stem's input needs none). Rounds alternate; figures are medians of processor time.

    KT_RAY_DATA=... python benchmarks/zoo_step.py
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common.markdown import bullets, table
from common.results import write
from common.timing import in_turn, medians, seconds
from common.zoo_steps import ARCHITECTURE, BATCH, PHASES, our_steps, plain_network
from torch.nn.functional import cross_entropy

from kt_ray.config import DatasetConfig
from kt_ray.data import LabelledImages, as_float, load_dataset
from kt_ray.networks.cost import multiply_adds
from kt_ray.zoo.training import gather_kernels, head_kernels, kernels, relu_kernels

MATRIX = 1024
PARTS = {
    "convolutions forward": {kernels: ("convolve", "convolve_read")},
    "gradients by kernels": {kernels: ("kernel_gradient",)},
    "gradients by inputs": {kernels: ("input_gradient", "read_gradients")},
    "stem, pooled, forward": {kernels: ("stem_forward",)},
    "stem, pooled, backward": {kernels: ("stem_backward",)},
    "batch norm, ReLU, residual": {
        kernels: ("measure", "norm_backward", "mask"),
        head_kernels: ("read_norm_backward",),
        relu_kernels: ("norm_relu", "relu", "residual", "residual_backward"),
    },
    "gathering a batch": {gather_kernels: ("gather_images", "gather_activations")},
}
REST = "head's products, loss, optimiser, Python"


def pytorch(phase: str, data: LabelledImages) -> Callable[[int], None]:
    """The same by nn.Module and autograd; images are tensors already, and the whole network runs in both phases."""
    network, optimizer = plain_network(phase)

    def run(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(len(data), (BATCH,))
            optimizer.zero_grad()
            cross_entropy(network(as_float(data.images[rows])), data.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def multiply_adds_of_a_step() -> dict[str, int]:
    """For each phase; the target's needs no stem, and of its last convolution only what the head reads (a quarter)."""
    with torch.random.fork_rng(devices=[]):
        stem, head = ARCHITECTURE.stem(), ARCHITECTURE.head()
        source, target = ARCHITECTURE.source_block(), ARCHITECTURE.target_block()
    shape = ARCHITECTURE.activation_shape
    of_stem = multiply_adds(stem, ARCHITECTURE.image_shape)
    of_head = multiply_adds(head, shape)
    convolution = multiply_adds(target, shape) // 2  # both of its convolutions are of one size
    first, last = convolution, convolution // 4
    return {
        "source": BATCH * (2 * of_stem + 3 * multiply_adds(source, shape) + 3 * of_head),
        "target": BATCH * (2 * first + 3 * last + 2 * of_head),
    }


def matrix_product_rate(rounds: int) -> float:
    """Multiply-adds a second of a large matrix product."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    return MATRIX**3 / statistics.median(seconds(lambda: a @ b, time.process_time) for _ in range(2 * rounds + 1))


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds in each of PARTS while the context is open."""
    spent = dict.fromkeys(PARTS, 0.0)
    before = [
        (part, module, name, getattr(module, name))
        for part, of_modules in PARTS.items()
        for module, names in of_modules.items()
        for name in names
    ]

    def wrapped(part: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = kernel(*arguments)
            spent[part] += time.perf_counter() - began
            return result

        return call

    for part, module, name, kernel in before:
        setattr(module, name, wrapped(part, kernel))
    try:
        yield spent
    finally:
        for _, module, name, kernel in before:
            setattr(module, name, kernel)


def shares(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """Milliseconds of a step in each part and in what no kernel took; medians of `steps`, in wall time: the clock of
    processor time costs as much as the smallest kernels."""
    samples = []
    for _ in range(steps):
        with timed() as spent:
            began = time.perf_counter()
            run(1)
            total = time.perf_counter() - began
        samples.append(spent | {REST: total - sum(spent.values())})
    return {part: 1000 * statistics.median(sample[part] for sample in samples) for part in samples[0]}


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds of a step of each kind and phase."""
    data = load_dataset(DatasetConfig(name="mnist5k", selection_images=1000)).train
    kinds = {"ours": our_steps, "pytorch": pytorch}
    runs = {f"{kind} {phase}": make(phase, data) for kind, make in kinds.items() for phase in PHASES}
    for run in runs.values():
        run(3)  # compiles
    works = {name: functools.partial(run, steps) for name, run in runs.items()}
    median = medians(in_turn(works, rounds, time.process_time))  # other work spoils wall time more
    needed, rate = multiply_adds_of_a_step(), matrix_product_rate(rounds)
    return {
        phase: {
            "ours_ms": 1000 * median[f"ours {phase}"] / steps,
            "pytorch_ms": 1000 * median[f"pytorch {phase}"] / steps,
            "multiply_adds": needed[phase],
            "arithmetic_ms": 1000 * needed[phase] / rate,
            "parts_ms": shares(runs[f"ours {phase}"], rounds * steps),
        }
        for phase in PHASES
    } | {"matrix_product_multiply_adds_per_second": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of each kind in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(options.rounds, options.steps)
    headline = {
        f"{phase}_{name}": results[phase]["ours_ms" if name == "over_arithmetic" else "pytorch_ms"]
        / results[phase]["arithmetic_ms" if name == "over_arithmetic" else "ours_ms"]
        for phase in PHASES
        for name in ("over_arithmetic", "speedup_over_pytorch")
    }
    write("zoo_step", headline, results, [0], text_of(results, headline))


def text_of(results: dict[str, Any], headline: dict[str, float]) -> str:
    """Return the table, and the headline below it."""
    kinds = {
        "PyTorch, images as tensors": "pytorch_ms",
        "kt_ray": "ours_ms",
        "its arithmetic at a matrix product's rate": "arithmetic_ms",
    }
    rows = {label: {phase: results[phase][key] for phase in PHASES} for label, key in kinds.items()}
    for part in results["source"]["parts_ms"]:
        rows[f"of kt_ray's: {part}"] = {phase: results[phase]["parts_ms"][part] for phase in PHASES}
    lines = [
        {"milliseconds of a step": label} | {phase: f"{value:.2f}" for phase, value in row.items()}
        for label, row in rows.items()
    ]
    return f"{table(lines)}\n\n{bullets(headline)}"


if __name__ == "__main__":
    main()
