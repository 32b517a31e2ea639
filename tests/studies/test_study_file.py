"""What a search will build, and the metrics that it asks for, are checked when its study file is read."""

from __future__ import annotations

import pytest

from kt_ray.errors import ConfigError
from kt_ray.studies.spaces import bundled
from kt_ray.studies.study_file import read_study, read_study_file


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("search.objectives=[{metric: accuracy}]", "search.objectives.0.metric"),
        ("search.constraints=[paramters <= 1e6]", "search.constraints.0"),
        ("search.sampler={name: tpe, options: {n_startup_trials: abc}}", "search.sampler.options.n_startup_trials"),
        ("search.pruner={name: median, options: {interval_steps: 1.5}}", "search.pruner.options.interval_steps"),
    ],
)
def test_what_a_search_cannot_build_or_measure_is_refused(override: str, path: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_study(bundled()["quickstart"], [override])
    assert path in str(raised.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "search.objectives=[{metric: acuracy}]",
            "search.objectives.0.metric: no trial reports 'acuracy'; did you mean accuracy?",
        ),
        ("search.constraints=[at <= 1]", "search.constraints.0: no trial reports 'at'; expected one of accuracy, "),
        ("dataset.selection_images=0", "dataset.selection_images: must be above 0"),
    ],
)
def test_what_students_do_not_report_is_refused_with_the_nearest(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_study_file(bundled()["factor_transfer"], ["space={training.momentum: {float: [0.5, 0.9]}}", override])
    assert said in str(raised.value)


def test_terms_of_a_method_are_reported_if_every_trial_has_them() -> None:
    overrides = ["space={method.name: {categorical: [ft, ft+kd]}}", "search.constraints=[ft <= 1]"]
    config = read_study_file(bundled()["factor_transfer"], overrides)
    assert set(config.metrics) >= {"accuracy", "cross_entropy", "ft"}
    assert "kd" not in config.metrics


def test_what_trials_report_can_be_asked_for() -> None:
    overrides = ["search.objectives=[{metric: accuracy_min}, {metric: device_hours, direction: minimize}]"]
    config = read_study(bundled()["quickstart"], [*overrides, "search.constraints=[parameters <= 1e6]"])
    assert [objective.metric for objective in config.search.objectives] == ["accuracy_min", "device_hours"]
