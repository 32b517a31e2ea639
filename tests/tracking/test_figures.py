from __future__ import annotations

import re

import optuna
import pytest

from kt_ray.tracking.figures import study_figures
from kt_ray.tracking.report import page, report


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    """Twelve finished trials and a pruned one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name="digits", direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        x, kind = trial.suggest_float("training.lr", 0, 1), trial.suggest_categorical("family", ["a", "b"])
        trial.report(x, 0)
        if trial.number == 12:
            raise optuna.TrialPruned
        return x + (kind == "a")

    study.optimize(objective, n_trials=13)
    return study


def test_figures_of_a_study(study: optuna.Study) -> None:
    assert list(study_figures(study)) == [
        "History",
        "Intermediate values",
        "Importance",
        "Parallel coordinates",
        "Slices",
    ]


def test_a_study_without_finished_trials_has_no_figures() -> None:
    assert study_figures(optuna.create_study()) == {}


def test_several_objectives_have_a_pareto_front() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=4)
    assert "Pareto front" in study_figures(study)


def test_trials_with_conditional_parameters_are_all_drawn() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        family = trial.suggest_categorical("family", ["mixer", "transformer"])
        return trial.suggest_int(f"{family}.depth", 1, 9) + trial.suggest_float("lr", 0, 1)

    study.optimize(objective, n_trials=12)
    figures = study_figures(study)
    assert "Importance" in figures
    assert sum(trace.mode == "lines" for trace in figures["Parallel coordinates"].data) == 12


def test_a_page_needs_no_network_and_has_plotly_once(study: optuna.Study) -> None:
    text = page("A <study>", {"Best": "<p>a</p>", **study_figures(study)})
    assert "<h1>A &lt;study&gt;</h1>" in text
    assert '<div class="wide"><p>a</p></div>' in text
    assert 'src="http' not in text
    assert text.count("plotly.js v") == 1


def test_the_report_of_a_study(study: optuna.Study) -> None:
    rows = [
        {"name": "source", "mean": 0.9, "min": 0.8, "max": 1.0, "accuracies": [0.8, 1.0], "parameters": 648},
        {"name": "translated", "mean": 0.7, "min": 0.6, "max": 0.8, "accuracies": [0.6, 0.8], "parameters": 324},
    ]
    rows = [row | {"seconds": seconds} for row, seconds in zip(rows, (None, 0.25), strict=True)]
    text = report(study, {"rows": rows})
    assert text.startswith("<!doctype html>")
    assert "Study digits" in text
    cells = re.sub("<[^>]*>", " ", re.sub("</t[dh]><t[dh][^>]*>", "|", text))
    for expected in (
        f" best trial|{study.best_trial.number} ",
        " source|0.9000|0.8000|1.000|648|- ",
        " translated|0.7000|0.6000|0.8000|324|0.2500 ",
        " 12|PRUNED|",
        " Importance ",
        *(
            f" {name}|{value if name == 'family' else format(value, '.4f')} "
            for name, value in study.best_params.items()
        ),
    ):
        assert cells.count(expected) == 1
    assert cells.count(" best trial|") == cells.count(" complete|12 ") == 1


def test_the_report_of_an_empty_study() -> None:
    assert "Trials" in report(optuna.create_study())


def test_the_report_of_several_objectives() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)
    assert "<h2>Pareto trials</h2>" in report(study)
