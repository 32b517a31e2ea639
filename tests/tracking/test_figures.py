from __future__ import annotations

import optuna
import pytest

from kt_ray.tracking.figures import accuracy_histogram, page, study_figures, table


@pytest.fixture
def study() -> optuna.Study:
    """Twelve finished trials and a pruned one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))

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
        "History", "Intermediate values", "Importance", "Parallel coordinates", "Slices",
    ]  # fmt: skip


def test_a_study_without_finished_trials_has_no_figures() -> None:
    assert study_figures(optuna.create_study()) == {}


def test_several_objectives_have_a_pareto_front() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=4)
    assert "Pareto front" in study_figures(study)


def test_a_page_needs_no_network_and_has_plotly_once(study: optuna.Study) -> None:
    text = page("A <study>", {"Best": table(["row", "mean"], [["a<b", 0.123456]]), **study_figures(study)})
    assert "<h1>A &lt;study&gt;</h1>" in text
    assert "<td>a&lt;b</td><td>0.1235</td>" in text
    assert 'src="http' not in text
    assert text.count("plotly.js v") == 1


def test_histogram_of_accuracies() -> None:
    figure = accuracy_histogram({"source": [0.9, 0.95], "translated": [0.5, 0.6], "none": []})
    labels = [entry.get_text() for entry in figure.axes[0].get_legend().get_texts()]
    assert labels == ["source: mean 0.925", "translated: mean 0.550"]
