"""Study files mutated at random: each is refused in short lines, or a search over it draws its first trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from kt_ray.config import Source
from kt_ray.errors import ConfigError
from kt_ray.search.space import apply
from kt_ray.search.study import SearchStudy
from kt_ray.studies.spaces import bundled
from kt_ray.studies.study_file import Config, read_study_file

MUTANTS = 60  # of each file
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    3,
    1.5,
    1e308,
    -1e-300,
    float("inf"),
    float("nan"),
    2**70,
    "",
    " ",
    "x",
    "é",
    "\ud800",
]
VALUES += [
    "x" * 300,
    "1:30",
    "010",
    "1e-3",
    "yes",
    "0.5",
    "../x",
    "a'b",
    "a/b",
    [],
    {},
    [1, [2]],
    [None],
    [0, 0],
    [3, 1],
]
VALUES += [{"a": 1}, {"float": [0.0, 0.3], "step": 0.1}, {"int": [1, 9], "log": True}, {"categorical": [1, "a", None]}]
EVERYTHING = """
name: everything
dataset: {name: mnist5k, train_images: 256, selection_images: 100}
pair: {name: basic_to_simple}
trial: {training: {epochs: 3}, translator: {family: mixer}}
space:
  translator.family: {categorical: [mixer, mlp]}
  training.learning_rate: {float: [1e-4, 1e-2], log: true}
  training.epochs: {int: [2, 8], step: 2, when: {translator.family: mlp}}
  loss.kl: {float: [0, 1], step: 0.25}
search:
  trials: 5
  hours: 90 min
  sampler: {name: tpe, options: {n_startup_trials: 2, multivariate: true}}
  pruner: {name: patient, options: {patience: 1}, pruner: {name: median, options: {n_startup_trials: 1}}}
  objectives: [{metric: accuracy_mean}, {metric: parameters, direction: minimize}]
  constraints: [parameters <= 1e6]
  points: [{loss.kl: 0.5}]
"""
GRID = """
name: grid
space: {training.epochs: {int: [1, 3]}, loss.kl: {float: [0.0, 0.3], step: 0.1}}
search: {trials: 5, sampler: {name: grid}, pruner: {name: hyperband}}
"""
Node = tuple[dict[Any, Any] | list[Any], Any]  # a container and the key of a value in it


@pytest.mark.parametrize("name", [*bundled(), "everything of it", "a grid"])
def test_a_mutant_is_refused_or_its_first_trials_are_drawn(name: str, tmp_path: Path) -> None:
    chance, path = random.Random(name), tmp_path / "study.yaml"
    path.write_text({"everything of it": EVERYTHING, "a grid": GRID}.get(name) or bundled()[name].read_text())
    draw_first_trials(read_study_file(path))
    tree, text = Source(path).content, path.read_text()
    valid = 0
    for _ in range(MUTANTS):
        mutant = text_mutant(text, chance) if chance.random() < 0.3 else tree_mutant(tree, chance)
        path.write_text(mutant, encoding="utf-8", errors="surrogatepass")
        try:
            config = read_study_file(path)
        except ConfigError as error:
            too_long = [problem for problem in error.problems if len(problem) > 2_000 or "\n" in problem]
        else:
            draw_first_trials(config)
            valid, too_long = valid + 1, []
        assert too_long == []
    assert 0 < valid < MUTANTS


def draw_first_trials(config: Config) -> None:
    """Ask as a search does, report what a first epoch would, and hear what the pruner says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = SearchStudy(config, optuna.storages.InMemoryStorage())
        study.describe()
        study.enqueue(config.search.points)
        for number in range(3):
            if study.exhausted:
                return
            trial = study.ask()
            apply(config.trial, trial.values)
            metrics = dict.fromkeys(config.metrics, 0.5 + number)
            study.end(trial, metrics, 1.0, pruned=study.report(trial, 1, metrics))


def text_mutant(text: str, chance: random.Random) -> str:
    """A character is deleted, replaced or put in, or a line is moved by blanks, doubled or dropped."""
    if chance.random() < 0.5:
        place = chance.randrange(len(text))
        return text[:place] + chance.choice(["", *":{}[],-&*!|>'\"%@#\t\n"]) + text[place + chance.randrange(2) :]
    lines = text.splitlines(keepends=True)
    number = chance.randrange(len(lines))
    lines[number : number + 1] = chance.choice([[], [lines[number]] * 2, ["  " + lines[number]]])
    return "".join(lines)


def tree_mutant(tree: dict[str, Any], chance: random.Random) -> str:
    """A value of the file is replaced or dropped, its key is misspelt, or a number in it is made another."""
    copy = yaml.safe_load(yaml.safe_dump(tree))
    container, key = chance.choice(list(nodes(copy)))
    changes: list[Callable[[Any], Any]] = [lambda _: chance.choice(VALUES)]
    if isinstance(container[key], int | float):
        changes.append(lambda value: value * chance.choice([-1, 1e6, 0.1, 3]))
    if isinstance(container, dict):
        changes.append(lambda value: container.setdefault(f"{key}x", value))
    container[key] = chance.choice(changes)(container[key])
    if chance.random() < 0.2:
        del container[key]
    return yaml.safe_dump(copy, allow_unicode=True)


def nodes(value: Any) -> list[Node]:
    """Every value in a tree, as its container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [node for key in keys for node in nodes(value[key])]
