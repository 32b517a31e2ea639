"""All residual blocks of ResNets narrowed without data and without retraining, beside what people use today.

ResNets of 8 and 20 layers (stem of stride 2, 16 to 64 channels, two epochs) on Fashion-MNIST, or another dataset, every
block translated, transitions included, to ¾, ½ and ¼ of its hidden width. "kt_ray" reads no image of the user's: it
carries probes, drawn from mixtures that were fitted to the zoo's images (which are of the same dataset), or random
shapes (no data at all).
The mixture is of 200 clusters; the local one has a Gaussian of eight neighbours round every image, and was chosen on
networks and images that are not reported.
Peers narrow the same networks to the same widths; neuron merging and LBYL's restoration are written anew here. Ratios
are of test accuracy to the original's; seconds are of one core's processor, of "local mixture, steps" alone, of other
rows while the other core worked.
Students' rows are of one network of each depth; they go on learning at the last epoch that is shown.

    python benchmarks/resnet_zoo.py DIRECTORY                # the networks, trained once
    python benchmarks/whole_network_students.py DIRECTORY    # students, trained with all data
    python benchmarks/whole_networks.py DIRECTORY            # goes on where it stopped; --dataset mnist for others
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common.memory import peak_above
from resnet_zoo import DATASET, KINDS, UNSEEN, Kind, dataset_named, member
from torch import Tensor, nn
from whole_network_peers import fine_tuned, magnitude, neuron_merging, restoration, torch_pruning
from whole_network_table import (
    CLUSTERED,
    FOR_UNSEEN,
    LEARNED,
    LONGER,
    ON_IMAGES,
    PATIENT,
    PROBES,
    RECONSTRUCTION,
    SEEDS,
    SHARES,
    UNLEARNED,
    Row,
    report,
    students,
)

from kt_ray.data import Dataset, as_float
from kt_ray.jobs.device import native_bfloat16
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.translation.narrowing import narrowed
from kt_ray.translation.probe_images import local_mixture, mixture, shapes
from kt_ray.translation.whole_network import LEAST_SQUARES, Fitting, translate_blocks, usual_steps

SEEDED = 8  # networks of each depth that translators of further seeds translate, too
UNSEEN_MEMBERS = 3  # networks of each kind not tuned on
FULL = 1  # networks of each depth that are narrowed to ¾, too, and in every way
SOME = (ON_IMAGES, "kt_ray: shapes, least squares")  # methods for `FULL` networks of each depth alone
Method = Callable[[nn.Module], nn.Module]


def translated(network: nn.Module, share: float, probes: Tensor, fitting: Fitting) -> nn.Module:
    """Return `network` with its blocks translated on `probes`."""
    small, sites = narrowed(network, share)
    translate_blocks(network, small, sites, probes, fitting)
    return small


def methods(dataset: Dataset, probes: dict[tuple[str, int], Tensor], share: float, seed: int) -> dict[str, Method]:
    """Return the ways to narrow a network; for seeds after the first those alone that have random parts of ours."""
    usual = Fitting(bfloat16=native_bfloat16("cpu"), seed=seed)

    def stepped(network: nn.Module, images: Tensor) -> nn.Module:
        steps = usual_steps(share, multiply_adds(network, dataset.image_shape))
        return translated(network, share, images, replace(usual, steps=steps))

    ours: dict[str, Method] = {
        LEARNED: lambda network: stepped(network, probes["local mixture", seed]),
    }
    if seed:
        return ours
    training = as_float(dataset.train.images[:PROBES])
    return ours | {
        CLUSTERED: lambda network: stepped(network, probes["mixture", 0]),
        UNLEARNED: lambda network: stepped(network, probes["shapes", 0]),
        PATIENT: lambda network: translated(network, share, probes["local mixture", 0], replace(usual, steps=LONGER)),
        "kt_ray: mixture, least squares": lambda network: translated(
            network, share, probes["mixture", 0], LEAST_SQUARES
        ),
        "kt_ray: shapes, least squares": lambda network: translated(network, share, probes["shapes", 0], LEAST_SQUARES),
        "magnitude pruning": lambda network: magnitude(network, share),
        "neuron merging": lambda network: neuron_merging(network, share),
        "restoration as in LBYL": lambda network: restoration(network, share),
        "Torch-Pruning": lambda network: torch_pruning(network, share, dataset.image_shape),
        "Torch-Pruning, fine-tuned": lambda network: fine_tuned(
            torch_pruning(network, share, dataset.image_shape), dataset.train
        ),
        "least squares on training images": lambda network: translated(
            network, share, training, replace(LEAST_SQUARES, images=RECONSTRUCTION)
        ),
        ON_IMAGES: lambda network: stepped(network, training),
    }


def draw_probes(dataset: Dataset) -> dict[tuple[str, int], Tensor]:
    """Return the images that a translator carries, by what they are drawn from and seed."""
    probes = {}
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        probes["mixture", seed] = mixture(dataset.train.images, PROBES, generator)
        probes["shapes", seed] = shapes(PROBES, dataset.image_shape, generator)
        generator = torch.Generator().manual_seed(seed)
        probes["local mixture", seed] = local_mixture(dataset.train.images, PROBES, generator)
    return probes


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return what `network` makes of uint8 `images`: [N, classes]."""
    return torch.cat([network(as_float(part)) for part in images.split(500)])


def measure(
    network: nn.Module,
    kind: Kind,
    number: int,
    dataset: Dataset,
    probes: dict[tuple[str, int], Tensor],
    known: list[Row],
) -> list[Row]:
    """Narrow one network in every way that is wanted for it and not `known`; return all rows."""
    test, done = dataset.test, {(row["width"], row["seed"], row["method"]) for row in known}
    original = logits(network, test.images).argmax(1)
    accuracy = float((original == test.labels).double().mean())
    common: Row = {"depth": kind.depth, "first_width": kind.width, "network": number, "original": accuracy}
    common |= {"original_multiply_adds": multiply_adds(network, dataset.image_shape)}
    common |= {"original_parameters": parameter_count(network)}
    rows = list(known)
    for (share_name, share), seed in itertools.product(SHARES.items(), SEEDS):
        for name, method in methods(dataset, probes, share, seed).items():
            if (share_name, seed, name) in done or not wanted(kind, number, share_name, seed, name):
                continue
            row = common | {"width": share_name, "method": name, "seed": seed}
            with peak_above(row, "mib"):
                began, wall = time.process_time(), time.perf_counter()
                small = method(network)
                row |= {"seconds": time.process_time() - began, "wall_seconds": time.perf_counter() - wall}
            predicted = logits(small, test.images).argmax(1)
            row |= {"accuracy": float((predicted == test.labels).double().mean())}
            row |= {"ratio": row["accuracy"] / accuracy}
            row |= {"agreement": float((predicted == original).double().mean())}
            row |= {"multiply_adds": multiply_adds(small, dataset.image_shape), "parameters": parameter_count(small)}
            rows.append(row)
    return rows


def wanted(kind: Kind, number: int, share: str, seed: int, method: str) -> bool:
    """Return True if this network is narrowed so: all of it for the first of each kind, the rest by what it takes."""
    if kind in UNSEEN:
        return share != "three_quarters" and seed == 0 and method in FOR_UNSEEN
    if share == "three_quarters":
        return number < FULL and seed == 0 and method != PATIENT
    return (number < SEEDED or seed == 0) and (number < FULL or method not in SOME)


def main() -> None:
    """Measure what was not yet, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the zoo; rows are kept there, too")
    parser.add_argument("--members", type=int, default=8, help="networks of each depth")
    parser.add_argument("--dataset", default=DATASET, help="of the networks in the directory")
    parser.add_argument("--report", action="store_true", help="only write what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = dataset_named(arguments.dataset)
    rows: list[Row] = []
    probes: dict[tuple[str, int], Tensor] = {}
    networks = [(kind, number) for number in range(arguments.members) for kind in KINDS]
    if dataset.name == DATASET:
        networks += [(kind, number) for number in range(UNSEEN_MEMBERS) for kind in UNSEEN]
    for kind, number in networks:
        path = arguments.directory / f"rows-{kind}-{number}.json"
        known = json.loads(path.read_text()) if path.exists() else []
        if not arguments.report:
            network = member(arguments.directory, kind, number, dataset).eval()
            probes = probes or draw_probes(dataset)
            known = measure(network, kind, number, dataset, probes, known)
            path.write_text(json.dumps(known))
        if known:
            rows += known
            shown = [
                f"{row['width']} {row['ratio']:.4f}" for row in known if (row["method"], row["seed"]) == (LEARNED, 0)
            ]
            print(f"{kind} {number}: {', '.join(shown)}", flush=True)
    for path in sorted(arguments.directory.glob("students-*.json")):
        rows += students(json.loads(path.read_text()))
    report(rows, dataset.name)


if __name__ == "__main__":
    main()
