"""How whole networks are fitted, chosen by a search over development networks of the zoo, on selection images alone.

    python benchmarks/resnet_zoo.py DIRECTORY                                 # the networks, trained once
    python benchmarks/whole_network_tuning.py DIRECTORY --trials 20           # goes on where it stopped

Each trial halves and quarters a ResNet-8 and a ResNet-20; it is judged by the geometric mean of the divergence of the
smaller network's predictions from the original's. A step's batch times the number of steps is the same for all.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import optuna
import torch
from resnet_zoo import DEVELOPMENT, KINDS, fashion_mnist, member
from torch.nn import functional
from whole_network_table import PROBES, SHARES
from whole_networks import logits, translated

from kt_ray.translation.probe_images import local_mixture
from kt_ray.translation.whole_network import Fitting

SAMPLES = Fitting.steps * Fitting.batch
TUNED = ("half", "quarter")


def suggested(trial: optuna.Trial) -> Fitting:
    """Return the fitting that `trial` tries."""
    batch = trial.suggest_categorical("batch", [32, 64, 96])
    return Fitting(
        ridge=trial.suggest_float("ridge", 1e-4, 1e-1, log=True),
        learning_rate=trial.suggest_float("learning_rate", 0.004, 0.03, log=True),
        momentum=trial.suggest_float("momentum", 0.8, 0.97),
        divergence=(
            trial.suggest_float("first divergence", 0.003, 0.3, log=True),
            trial.suggest_float("last divergence", 0.1, 10.0, log=True),
        ),
        batch=batch,
        steps=SAMPLES // batch,
    )


def main() -> None:
    """Search, then print the trials from the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the zoo; the study is kept there, too")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--network", type=int, default=DEVELOPMENT, help="seed of the development networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = fashion_mnist()
    images = dataset.selection.images
    probes = local_mixture(dataset.train.images, PROBES, torch.Generator().manual_seed(0))
    networks = {kind: member(arguments.directory, kind, arguments.network, dataset).eval() for kind in KINDS}
    expected = {kind: logits(network, images).log_softmax(1) for kind, network in networks.items()}

    def objective(trial: optuna.Trial) -> float:
        fitting, divergences, began = suggested(trial), {}, time.process_time()
        for kind, network in networks.items():
            for width in TUNED:
                found = logits(translated(network, SHARES[width], probes, fitting), images).log_softmax(1)
                missed = functional.kl_div(found, expected[kind], log_target=True, reduction="batchmean")
                divergences[f"{kind}, {width}"] = float(missed)
        trial.set_user_attr("divergences", divergences)
        trial.set_user_attr("seconds", time.process_time() - began)
        return math.exp(statistics.mean(map(math.log, divergences.values())))

    study = optuna.create_study(
        study_name="whole-networks",
        storage=f"sqlite:///{arguments.directory / 'tuning.db'}",
        sampler=optuna.samplers.TPESampler(multivariate=True, seed=len(list(arguments.directory.iterdir()))),
        load_if_exists=True,
    )
    first, last = Fitting.divergence
    usual = {name: getattr(Fitting, name) for name in ("batch", "ridge", "learning_rate", "momentum")}
    study.enqueue_trial(usual | {"first divergence": first, "last divergence": last}, skip_if_exists=True)
    study.optimize(objective, n_trials=arguments.trials)
    columns = ["value", *(column for column in study.trials_dataframe() if column.startswith(("params", "user")))]
    print(study.trials_dataframe().sort_values("value")[columns].to_string())


if __name__ == "__main__":
    main()
