"""Factor Transfer against no teacher, KD, AT and both, each tuned by an equally long search, over several seeds.

Fashion-MNIST, all training images; teacher, paraphraser, student and the space are those of
search_spaces/factor_transfer.yaml. A search ranks its points by accuracy on the selection images; the test images are
looked at once, by the students of the final seeds. One seed starts the students of all methods alike and shows them the
images in one order, so differences are also told pair by pair. Every finished network is kept in --directory: run
again, it goes on, and with larger settings it redoes only what they change.

    python benchmarks/factor_transfer.py
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import optuna
import torch
from common.distilling import difference, parser_of, spread, stages_of
from common.markdown import table
from common.results import write

from kt_ray.config import DistillConfig, DistillTrialConfig, Distribution, read_source, set_path, validate_source
from kt_ray.data import load_dataset
from kt_ray.distillation.distill import trained_student
from kt_ray.distillation.stages import Stages
from kt_ray.distillation.training import accuracy
from kt_ray.networks.cost import multiply_adds, parameter_count
from kt_ray.search.space import to_optuna
from kt_ray.studies.spaces import locate

METHODS = ("none", "kd", "at", "ft", "ft+kd")
CITED = (("ft", "none"), ("ft", "kd"), ("ft", "at"), ("ft+kd", "kd"))  # differences in the headline
COMPARED = (*CITED[:3], ("kd", "none"), ("at", "none"), ("ft+kd", "none"), CITED[3])
SEARCH_SEED = 1000  # of the students of a search; the final seeds are others
# What the methods' authors use: the first point of every search.
LITERATURE: dict[str, Any] = {
    "training.learning_rate": 0.1,
    "training.weight_decay": 0.0005,
    "method.ft.beta": 500.0,
    "method.at.beta": 1000.0,
    "method.kd.temperature": 4.0,
    "method.kd.alpha": 0.9,
}
# Left as the paper has them, so that a short search is spent on what decides.
FIXED = ("paraphraser.rate", "method.ft.p", "method.ft.layers", "method.ft.translator_learning_rate")


def student_of(base: DistillTrialConfig, values: dict[str, Any], epochs: int, seed: int) -> DistillTrialConfig:
    """`base` with dotted `values`, for so many epochs from `seed`."""
    content = base.model_dump()
    for path, value in {**values, "training.epochs": epochs, "seed": seed}.items():
        set_path(content, path, value)
    return DistillTrialConfig.model_validate(content)


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
        student = student_of(config.trial, values, arguments.search_epochs, SEARCH_SEED)
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


def text_of(results: dict[str, Any]) -> str:
    """The methods and their differences as Markdown."""
    teacher, student = results["teacher"], results["student"]
    about = (
        f"Teacher: {teacher['parameters']:,} parameters, test accuracy {100 * teacher['accuracy']:.2f}, trained for "
        f"{teacher['epochs']} epochs. Student: {student['parameters']:,} parameters "
        f"({teacher['parameters'] / student['parameters']:.1f} times smaller), {student['multiply_adds']:,} "
        f"multiply-adds ({teacher['multiply_adds'] / student['multiply_adds']:.0f} times fewer), "
        f"{student['epochs']} epochs. Training images: {results['training_images']:,}; each method tuned by "
        f"{results['trials_a_method']} trials of {results['search_epochs']} epochs on "
        f"{results['selection_images']:,} selection images."
    )
    seeds = len(results["methods"]["none"]["accuracies"])
    methods = [
        {
            "method": name,
            "seeds": seeds,
            "test accuracy: mean ± standard deviation": f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f}",
            "worst": f"{100 * min(row['accuracies']):.2f}",
            "best": f"{100 * max(row['accuracies']):.2f}",
            "seconds a student": f"{row['seconds']:.0f}",
        }
        for name, row in results["methods"].items()
    ]
    differences = [
        {
            "difference": name,
            "points ± standard error": f"{entry['points']:+.2f} ± {entry['standard_error']:.2f}",
            "seed by seed": f"± {entry['paired_standard_error']:.2f}",
            "seeds won": f"{entry['seeds_won']} of {seeds}",
        }
        for name, entry in results["differences"].items()
    ]
    points = []
    for name, entry in results["searches"].items():
        values = {path: value for path, value in entry["best"].items() if path != "method.name"}
        shown = ", ".join(f"{path} = {value:.3g}" for path, value in values.items())
        points.append({"method": name, "best point of its search": shown})
    return "\n\n".join([about, table(methods), table(differences), table(points)])


def finish(name: str, results: dict[str, Any], seeds: list[int]) -> None:
    """Write what is known so far as `results/<name>`."""
    rows = results["methods"]
    results["differences"] = {f"{one} − {other}": difference(rows[one], rows[other]) for one, other in COMPARED}
    headline: dict[str, float] = {}
    for one, other in CITED:
        entry = results["differences"][f"{one} − {other}"]
        points = f"{one.replace('+', '_')}_minus_{other}"
        headline |= {points: entry["points"], f"{points}_standard_error": entry["standard_error"]}
    write(name, headline, results, seeds, text_of(results))


def main() -> None:
    parser = parser_of(__doc__, "factor_transfer", seeds=5)
    parser.add_argument("--trials", type=int, default=6, help="search trials a method")
    parser.add_argument("--search-epochs", type=int, default=None, help="the space's training.epochs if unset")
    parser.add_argument("--epochs", type=int, default=None, help="of a student; the space's training.epochs if unset")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="changes the space's file")
    parser.add_argument("--results", default="factor_transfer", help="name of the files written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    config = validate_source(DistillConfig, read_source(locate("factor_transfer"), arguments.set))
    arguments.epochs = arguments.epochs or config.training.epochs
    arguments.search_epochs = arguments.search_epochs or config.training.epochs
    dataset = load_dataset(config.dataset)
    stages = stages_of(dataset, arguments)
    teacher = stages.teacher(config.teacher)
    test = dataset.test.to(arguments.device)
    student = stages.network(config.student, 0)
    results: dict[str, Any] = {
        "dataset": config.dataset.name,
        "training_images": len(dataset.train),
        "selection_images": len(dataset.selection),
        "trials_a_method": arguments.trials,
        "search_epochs": arguments.search_epochs,
        "configuration": config.trial.model_dump(mode="json"),
        "teacher": teacher.facts
        | {
            "accuracy": accuracy(teacher.module, test),
            "selection_accuracy": teacher.facts.get("accuracy"),
            "parameters": parameter_count(teacher.module),
            "multiply_adds": multiply_adds(teacher.module, dataset.image_shape),
            "epochs": config.teacher.training.epochs,
        },
        "student": {
            "parameters": parameter_count(student),
            "multiply_adds": multiply_adds(student, dataset.image_shape),
            "epochs": arguments.epochs,
        },
        "searches": {method: search(stages, config, method, arguments) for method in METHODS},
    }
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in range(arguments.seeds):
        for method in METHODS:
            tuned = student_of(config.trial, results["searches"][method]["best"], arguments.epochs, seed)
            network, facts = trained_student(stages, tuned)
            scores[method].append(accuracy(network, test))
            seconds[method].append(facts["seconds"])
            print(seed, method, scores[method][-1], flush=True)
        results["methods"] = {
            method: spread(scores[method]) | {"seconds": statistics.mean(seconds[method])} for method in METHODS
        }
        searched = [entry.get("seconds", 0.0) for found in results["searches"].values() for entry in found["trials"]]
        students = [value for row in seconds.values() for value in row]
        results["training_minutes"] = (sum(searched) + sum(students) + teacher.facts["seconds"]) / 60
        if seed:
            finish(arguments.results, results, list(range(seed + 1)))


if __name__ == "__main__":
    main()
