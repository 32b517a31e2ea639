"""Factor Transfer against no teacher, KD, AT and both, each tuned by an equally long search, over several seeds.

Fashion-MNIST, all training images; the space, the student and the paraphraser are those of
search_spaces/factor_transfer.yaml. Every finished network is kept in --directory: run again, it goes on, and with
larger settings it redoes only what they change. --mnist adds the table on Knowledge Translation's MNIST pair.

    python benchmarks/factor_transfer.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from distillation_report import write
from factor_transfer_mnist import mnist_table

from kt_ray.config import DistillConfig, DistillTrialConfig, Distribution, load_config, set_path
from kt_ray.data import load_dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import trained_student
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.training import accuracy
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.search.space import to_optuna
from kt_ray.spaces import locate

METHODS = ("none", "kd", "at", "ft", "ft+kd")
# What the methods' authors use: the first point of every search.
LITERATURE: dict[str, Any] = {
    "training.learning_rate": 0.1,
    "paraphraser.rate": 0.5,
    "method.ft.beta": 500.0,
    "method.at.beta": 1000.0,
    "method.kd.temperature": 4.0,
    "method.kd.alpha": 0.9,
}
# Left as the paper has them, so that a short search is spent on what decides.
FIXED = ("method.ft.p", "method.ft.layers", "method.ft.translator_learning_rate", "training.weight_decay")


def with_values(base: DistillTrialConfig, values: dict[str, Any]) -> DistillTrialConfig:
    """`base` with dotted `values`."""
    content = base.model_dump()
    for path, value in values.items():
        set_path(content, path, value)
    return DistillTrialConfig.model_validate(content)


def shorter(base: DistillTrialConfig, epochs: int, seed: int) -> DistillTrialConfig:
    """`base` for so many epochs from `seed`."""
    return base.model_copy(update={"seed": seed, "training": base.training.model_copy(update={"epochs": epochs})})


def search(stages: Stages, config: DistillConfig, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The best of `--trials` points for `method` by accuracy on the selection images; TPE, seeded."""
    space = {path: item for path, item in config.space.items() if path not in FIXED}
    space["method.name"] = Distribution(categorical=(method,))
    ask = to_optuna(space)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=max(3, arguments.trials // 2))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.enqueue_trial(LITERATURE)
    tried = []
    for _ in range(arguments.trials):
        trial = study.ask()
        values = ask(trial)
        student = shorter(with_values(config.trial, values), arguments.search_epochs, seed=1000)
        try:
            _, facts = trained_student(stages, student)
            study.tell(trial, facts["accuracy"])
            tried.append({"values": values, "accuracy": facts["accuracy"], "seconds": facts["seconds"]})
        except Exception as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            tried.append({"values": values, "failed": str(error)})
        print(method, tried[-1], flush=True)
    best = max((entry for entry in tried if "accuracy" in entry), key=lambda entry: entry["accuracy"])
    return {"best": best["values"], "trials": tried}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation and standard error."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return {
        "accuracies": values,
        "mean": statistics.mean(values),
        "std": deviation,
        "standard_error": deviation / len(values) ** 0.5,
    }


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Difference of the means in accuracy points, and its standard error (seeds are independent)."""
    error = (one["standard_error"] ** 2 + other["standard_error"] ** 2) ** 0.5
    return 100 * (one["mean"] - other["mean"]), 100 * error


def table(results: dict[str, Any]) -> str:
    """The methods as Markdown."""
    teacher, student = results["teacher"], results["student"]
    lines = [
        f"Teacher: {teacher['parameters']:,} parameters, test accuracy {100 * teacher['accuracy']:.2f}, trained for "
        f"{teacher['epochs']} epochs. Student: {student['parameters']:,} parameters "
        f"({teacher['parameters'] / student['parameters']:.1f} times smaller), {student['epochs']} epochs. "
        f"Training images: {results['training_images']:,}; each method tuned by {results['trials_a_method']} trials of "
        f"{results['search_epochs']} epochs on {results['selection_images']:,} selection images.",
        "",
        "| method | seeds | test accuracy: mean ± standard deviation | worst | best | seconds a student |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["methods"].items():
        scores = [100 * value for value in row["accuracies"]]
        lines.append(
            f"| {name} | {len(scores)} | {100 * row['mean']:.2f} ± {100 * row['std']:.2f} | {min(scores):.2f} | "
            f"{max(scores):.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, default=Path("kt-workspace/benchmarks/factor_transfer"), help="keeps what is finished"
    )
    parser.add_argument("--trials", type=int, default=5, help="search trials a method")
    parser.add_argument("--search-epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a student")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--teacher-depth", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--paraphraser-epochs", type=int, default=2)
    parser.add_argument("--train-images", type=int, default=None, help="fewer, for a trial of the script itself")
    parser.add_argument("--mnist", action="store_true", help="also the table on the MNIST pair (needs KT_RAY_DATA)")
    parser.add_argument("--mnist-epochs", type=int, default=3)
    parser.add_argument("--translator", type=Path, default=None, help="a translator checkpoint for that table")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    config = load_config(DistillConfig, locate("factor_transfer"), [
        f"teacher.network.resnet.depth={arguments.teacher_depth}",
        f"teacher.training.epochs={arguments.teacher_epochs}",
        f"paraphraser.training.epochs={arguments.paraphraser_epochs}",
        f"dataset.train_images={arguments.train_images or 'null'}",
    ])  # fmt: skip
    dataset = load_dataset(config.dataset)

    def report(progress: Progress) -> None:
        print(f"{progress.stage} {progress.epoch}/{progress.epochs} {progress.metrics}", flush=True)

    stages = Stages(Cache(arguments.directory), dataset, arguments.device, report)
    start = time.perf_counter()
    teacher = stages.teacher(config.teacher)
    test = dataset.test.to(arguments.device)
    student = stages.network(config.student, 0)
    results: dict[str, Any] = {
        "dataset": config.dataset.name,
        "training_images": len(dataset.train),
        "selection_images": len(dataset.selection),
        "trials_a_method": arguments.trials,
        "search_epochs": arguments.search_epochs,
        "teacher": teacher.facts | {
            "accuracy": accuracy(teacher.module, test),
            "parameters": parameter_count(teacher.module),
            "multiply_adds": multiply_adds(teacher.module, dataset.image_shape),
            "epochs": arguments.teacher_epochs,
        },
        "student": {
            "parameters": parameter_count(student),
            "multiply_adds": multiply_adds(student, dataset.image_shape),
            "epochs": arguments.epochs,
        },
        "searches": {method: search(stages, config, method, arguments) for method in METHODS},
        "methods": {},
    }  # fmt: skip
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in range(arguments.seeds):
        for method in METHODS:
            tuned = with_values(config.trial, results["searches"][method]["best"])
            network, facts = trained_student(stages, shorter(tuned, arguments.epochs, seed))
            scores[method].append(accuracy(network, test))
            seconds[method].append(facts["seconds"])
            print(seed, method, scores[method][-1], flush=True)
        results["methods"] = {
            method: spread(scores[method]) | {"seconds": statistics.mean(seconds[method])} for method in METHODS
        }
        results["minutes"] = (time.perf_counter() - start) / 60
        if seed:
            finish(results, list(range(seed + 1)))
    if arguments.mnist:
        results["mnist_pair"], rows = mnist_table(arguments)
        finish(results, list(range(arguments.seeds)), rows)


def finish(results: dict[str, Any], seeds: list[int], more: str = "") -> None:
    """Write what is known so far."""
    rows = results["methods"]
    headline: dict[str, float] = {}
    for other in ("none", "kd", "at"):
        points, error = difference(rows["ft"], rows[other])
        headline |= {f"ft_minus_{other}": points, f"ft_minus_{other}_standard_error": error}
    points, error = difference(rows["ft+kd"], rows["kd"])
    headline |= {"ft_kd_minus_kd": points, "ft_kd_minus_kd_standard_error": error}
    text = "\n".join(f"{name}: {value:+.2f}" for name, value in headline.items() if "error" not in name)
    write("factor_transfer", headline, results, seeds, f"{table(results)}\n\n{text}{more}")


if __name__ == "__main__":
    main()
