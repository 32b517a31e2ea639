"""What a search over a ResNet's blocks finds, beside writing all blocks of the same networks in forward order.

`kt-ray run resnet` searches for one translator of all residual blocks, each translated on its own. Its best translator
fills all blocks of the test members at once; the other rows are what `kt-ray translate --network` does to the same
members, on images fitted to nothing (shapes, strokes) or to the dataset (mixture). Ratios are of test accuracy to the
original's, seconds of one network's translation.

    kt-ray run resnet --workspace DIRECTORY
    python benchmarks/resnet_search.py DIRECTORY/studies/resnet
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common.results import write
from torch import nn

from kt_ray.config import DatasetConfig
from kt_ray.data import LabelledImages, as_float, load_dataset
from kt_ray.jobs.device import native_bfloat16
from kt_ray.networks import stacked
from kt_ray.networks.cost import multiply_adds
from kt_ray.studies.whole_networks import draw_probes
from kt_ray.translation.narrowing import narrowed
from kt_ray.translation.whole_network import Fitting, translate_blocks, usual_steps
from kt_ray.zoo.store import ZooStore

SHARE = 0.5
Row = dict[str, Any]


@torch.no_grad()
def accuracy(network: nn.Module, images: LabelledImages) -> float:
    """Return the share of `images` that `network`, of images in [0, 1], gets right."""
    predicted = torch.cat([network.eval()(as_float(part)).argmax(1) for part in images.images.split(500)])
    return float((predicted == images.labels).double().mean())


def in_forward_order(zoo: Path, dataset: DatasetConfig) -> list[Row]:
    """Return a row for each kind of probes: the test members of `zoo` with all blocks written in forward order."""
    data, members = load_dataset(dataset), ZooStore(str(zoo)).read().where("test")
    architecture, states = members.architecture, stacked.part(members.parameters, "network")
    steps = usual_steps(SHARE, multiply_adds(architecture.whole(), data.image_shape))
    fitting = Fitting(steps=steps, bfloat16=native_bfloat16("cpu"))
    rows = []
    for kind in ("shapes", "strokes", f"mixture:{data.name}"):
        probes, ratios, seconds = draw_probes(kind, data.image_shape), [], []
        for number in range(members.index.num_rows):
            network = architecture.whole()
            network.load_state_dict({name: stack[number] for name, stack in states.items()}, strict=False)
            began = time.process_time()
            small, sites = narrowed(network.eval(), SHARE)
            translate_blocks(network, small, sites, probes, fitting)
            seconds.append(time.process_time() - began)
            before, after = (accuracy(architecture.taking_images(one), data.test) for one in (network, small))
            ratios.append(after / before)
        name = f"in forward order, {kind.split(':')[0]}"
        rows.append({"method": name, "ratios": ratios, "seconds": statistics.mean(seconds)})
    return rows


def searched(conclusion: Row) -> list[Row]:
    """Return rows of the best translator, in all blocks at once and in one block at a time."""
    found = {row["name"]: row for row in conclusion["evaluation"]["rows"]}
    sources = found["source"]["accuracies"]
    rows = []
    for name, method in (
        ("translated, all blocks", "searched, all blocks"),
        ("translated", "searched, one block"),
        ("projected block, random strokes", "closed form on strokes, one block"),
    ):
        accuracies, seconds = found[name]["accuracies"], found[name]["seconds"]
        ratios = [after / before for after, before in zip(accuracies, sources, strict=False)]
        rows.append({"method": method, "ratios": ratios, "seconds": seconds})
    return rows


def main() -> None:
    """Measure the members of each study's zoo, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", type=Path, nargs="+", help="folders of finished studies in their workspaces")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| network | trials | method | members | mean ratio | worst ratio | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    results, headline = [], {}
    for folder in arguments.studies:
        study, conclusion = (json.loads((folder / name).read_text()) for name in ("study.json", "conclusion.json"))
        options = study["zoo"]["network"]["options"]
        network = f"ResNet-{options['depth']}, {options['width']} channels"
        zoo = folder.parent.parent / "zoos" / study["zoo"]["name"]
        rows = searched(conclusion) + in_forward_order(zoo, DatasetConfig.model_validate(study["dataset"]))
        members, trials = conclusion["evaluation"]["member_count"], study["search"]["trials"]
        for row in rows:
            mean = statistics.mean(row["ratios"])
            lines.append(
                f"| {network} | {trials} | {row['method']} | {members} | {mean:.4f} | {min(row['ratios']):.4f} "
                f"| {row['seconds']:.1f} |"
            )
            headline[f"{network} {row['method']} ratio"] = mean
        results.append({"study": study, "params": conclusion["params"], "rows": rows})
    text = "\n".join(lines)
    write("resnet_search", headline, results, [0], text)
    print(text)


if __name__ == "__main__":
    main()
