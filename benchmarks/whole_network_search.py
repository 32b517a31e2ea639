"""A search over how whole networks are narrowed: accuracy kept against seconds, one way for all depths and widths.

A trial halves and quarters a ResNet-8 and a ResNet-20 of those set apart for development, and is judged on images split
off the training set, by the geometric mean of the divergence of predictions from the original's (above 0.05 it is of no
use), and by the mean seconds of one core's processor. Then every way that no other beats in both narrows networks of a
depth and of a width on which nothing was tried, and so does the one that kt_ray uses; ratios are of test accuracy to
the original's. Seconds were measured beside other work.

    python benchmarks/resnet_zoo.py DIRECTORY                                 # the networks, trained once
    python benchmarks/whole_network_search.py DIRECTORY --trials 40           # goes on where it stopped
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from common.results import write
from resnet_zoo import DATASET, DEVELOPMENT, KINDS, UNSEEN, accuracy, dataset_named, member
from torch import Tensor, nn
from torch.nn.functional import kl_div
from whole_network_table import PROBES, SHARES
from whole_networks import logits, translated

from kt_ray.data import Dataset
from kt_ray.jobs.device import native_bfloat16
from kt_ray.networks.cost import multiply_adds
from kt_ray.translation.probe_images import local_mixture, mixture, shapes, strokes
from kt_ray.translation.whole_network import Fitting, usual_steps

WIDTHS = ("half", "quarter")
LARGEST = 0.05  # divergence that is of use
TESTED = 2  # networks of each kind on which nothing was tried
DRAWN = ("local mixture", "mixture", "shapes", "strokes")


@dataclass(frozen=True)
class Way:
    """What probes are drawn from, how many, and the fitting of a ResNet-20's halves: other networks take more steps."""

    probes: str = "local mixture"
    count: int = PROBES
    fitting: Fitting = Fitting(bfloat16=native_bfloat16("cpu"))

    def narrow(self, network: nn.Module, share: float, drawn: dict[str, Tensor]) -> nn.Module:
        """Return `network` narrowed so."""
        cost = multiply_adds(network, tuple(drawn[self.probes].shape[1:]))
        steps = round(usual_steps(share, cost) * self.fitting.steps / Fitting.steps)
        return translated(network, share, drawn[self.probes][: self.count], replace(self.fitting, steps=steps))


USUAL = Way()


def suggested(trial: optuna.trial.BaseTrial) -> Way:
    """Return the way that `trial` tries."""
    fitting = replace(
        USUAL.fitting,
        images=trial.suggest_int("images", 48, 512, log=True),
        ridge=trial.suggest_float("ridge", 1e-3, 1e-1, log=True),
        steps=trial.suggest_int("steps", 20, 200, log=True),
        batch=trial.suggest_categorical("batch", [32, 64, 96]),
        learning_rate=trial.suggest_float("learning_rate", 0.005, 0.03, log=True),
        momentum=trial.suggest_float("momentum", 0.8, 0.95),
        divergence=(
            trial.suggest_float("first divergence", 5e-4, 0.05, log=True),
            trial.suggest_float("last divergence", 0.1, 3.0, log=True),
        ),
    )
    kind = trial.suggest_categorical("probes", DRAWN)
    return Way(str(kind), trial.suggest_int("probe count", 1024, PROBES, log=True), fitting)


def usual_params() -> dict[str, Any]:
    """Return the parameters of `USUAL`, which is the first trial."""
    names = ("images", "ridge", "steps", "batch", "learning_rate", "momentum")
    first, last = USUAL.fitting.divergence
    params = {name: getattr(USUAL.fitting, name) for name in names} | {"probes": USUAL.probes}
    return params | {"probe count": USUAL.count, "first divergence": first, "last divergence": last}


def search(study: optuna.Study, directory: Path, dataset: Dataset, drawn: dict[str, Tensor], trials: int) -> None:
    """Run `trials`."""
    images = dataset.selection.images
    networks = {kind: member(directory, kind, DEVELOPMENT, dataset) for kind in KINDS}
    expected = {kind: logits(network, images).log_softmax(1) for kind, network in networks.items()}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        way, divergences, seconds = suggested(trial), [], []
        for (kind, network), width in itertools.product(networks.items(), WIDTHS):
            began = time.process_time()
            small = way.narrow(network, SHARES[width], drawn)
            seconds.append(time.process_time() - began)
            found = logits(small, images).log_softmax(1)
            divergences.append(float(kl_div(found, expected[kind], log_target=True, reduction="batchmean")))
        divergence = math.exp(statistics.mean(map(math.log, divergences)))
        trial.set_constraint("divergence", divergence - LARGEST)
        return divergence, statistics.mean(seconds)

    study.optimize(objective, n_trials=trials)


def tested(way: Way, directory: Path, dataset: Dataset, drawn: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean ratio of test accuracy, by kind and width, on networks on which nothing was tried."""
    ratios = dict[str, list[float]]()
    for kind, number in itertools.product(UNSEEN, range(TESTED)):
        network = member(directory, kind, number, dataset)
        before = accuracy(network, dataset.test.images, dataset.test.labels)
        for width in WIDTHS:
            small = way.narrow(network, SHARES[width], drawn)
            after = accuracy(small, dataset.test.images, dataset.test.labels)
            ratios.setdefault(f"{kind} {width}", []).append(after / before)
    return {name: statistics.mean(found) for name, found in ratios.items()}


def main() -> None:
    """Search, then test the best ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the zoo; the study is kept there, too")
    parser.add_argument("--trials", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset, generator = dataset_named(DATASET), torch.Generator().manual_seed(0)
    drawn = {
        "local mixture": local_mixture(dataset.train.images, PROBES, generator),
        "mixture": mixture(dataset.train.images, PROBES, generator),
        "shapes": shapes(PROBES, dataset.image_shape, generator),
        "strokes": strokes(PROBES, dataset.image_shape, generator),
    }
    study = optuna.create_study(
        study_name="whole networks",
        directions=["minimize", "minimize"],
        storage=f"sqlite:///{arguments.directory / 'search.db'}",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(multivariate=True, seed=len(study.trials))
    study.enqueue_trial(usual_params(), skip_if_exists=True)
    search(study, arguments.directory, dataset, drawn, arguments.trials - len(study.trials) + 1)
    best = sorted(study.best_trials, key=lambda trial: trial.values[1])
    lines, rows, headline = list[str](), [], {"trials": float(len(study.trials))}
    for trial in [study.trials[0], *(one for one in best if one.number)]:
        way, (divergence, seconds) = suggested(optuna.trial.FixedTrial(trial.params)), trial.values
        ratios = tested(way, arguments.directory, dataset, drawn)
        rows.append({"trial": trial.number, "way": asdict(way), "divergence": divergence, "seconds": seconds} | ratios)
        name = f"{trial.number}, as kt_ray does" if trial.number == 0 else str(trial.number)
        if not lines:
            columns = ["trial", "probes", "images for least squares", "steps", "divergence", "seconds", *ratios]
            lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            headline |= {f"usual {kind} ratio": ratio for kind, ratio in ratios.items()}
        cells = [name, f"{way.count} of {way.probes}", f"{way.fitting.images}"]
        cells += [f"{way.fitting.steps} of {way.fitting.batch}", f"{divergence:.4f}", f"{seconds:.1f}"]
        lines.append(f"| {' | '.join(cells + [f'{ratio:.4f}' for ratio in ratios.values()])} |")
    text = "\n".join(lines)
    write("whole_network_search", headline, rows, [0], text)
    print(text)


if __name__ == "__main__":
    main()
