"""Every study file that ships is valid, can be found by name and copied."""

from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from kt_ray.config import AugmentationConfig, LossConfig, Source, TranslatorConfig
from kt_ray.data import Dataset
from kt_ray.errors import ConfigError
from kt_ray.search.space import apply, size
from kt_ray.search.study import SearchStudy
from kt_ray.studies.spaces import bundled, copy, description, locate
from kt_ray.studies.study_file import read_study, space_rows
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.members import Zoo

STUDIES = sorted(name for name, path in bundled().items() if "trial" in Source(path).content)


def test_the_promised_files_ship() -> None:
    assert {
        "quickstart",
        "mixer_paper",
        "architectures",
        "augmentation",
        "everything",
        "frontier",
        "resnet",
    } <= bundled().keys()


def test_everything_searches_every_ingredient() -> None:
    config = read_study(bundled()["everything"])
    searched = {".".join(path.split(".")[:2]) for path in config.space}
    parts = {"translator": TranslatorConfig, "loss": LossConfig, "augmentation": AugmentationConfig}
    ingredients = {f"{part}.{name}" for part, model in parts.items() for name in model.model_fields}
    by_name = {"translator.options", "loss.terms", "augmentation.others"}  # of what people register
    assert ingredients - searched == {"loss.images"} | by_name


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_file_that_ships_is_valid(name: str) -> None:
    config = read_study(bundled()[name])
    assert config.name == name
    assert description(bundled()[name])
    assert len(space_rows(config)) == len(config.space)
    assert size(config.space, config.trial)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_the_frontier_is_searched_for_accuracy_and_cost(sampler: str, random_zoo: Zoo, dataset: Dataset) -> None:
    brief = ["trial.training.epochs=1", "trial.training.steps_per_epoch=1", "trial.training.batch_size=2"]
    config = read_study(bundled()["frontier"], [f"search.sampler={{name: {sampler}}}", *brief])
    study = SearchStudy(config, InMemoryStorage())
    for _ in range(3):
        candidate = study.ask()
        metrics = TranslatorTraining(apply(config.trial, candidate.values), random_zoo, dataset).run_epoch()
        study.report(candidate, 1, metrics, last=True)
        study.end(candidate, metrics, 1.0, pruned=False)
    found = [trial.values for trial in study.trials()]
    assert all(0 <= accuracy <= 1 and cost > 0 for accuracy, cost in found)
    assert {tuple(trial.values) for trial in study.optuna.best_trials} <= {tuple(values) for values in found}


def test_the_papers_translator_has_its_size() -> None:
    from kt_ray.networks import architecture_of
    from kt_ray.networks.cost import parameter_count
    from kt_ray.translation.translator import build_translator

    config = read_study(bundled()["mixer_paper"])
    architecture = architecture_of(config.pair, config.zoo.network, (1, 28, 28), 10)
    translator = build_translator(config.trial.translator, architecture)
    assert parameter_count(translator) == pytest.approx(4.1e6, rel=0.03)


def test_a_file_here_comes_before_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("quickstart") == locate("quickstart.yaml") == bundled()["quickstart"]
    copy("quickstart", tmp_path)
    assert locate("quickstart.yaml") == Path("quickstart.yaml")
    with pytest.raises(ConfigError, match="exists already"):
        copy("quickstart", tmp_path)


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(ConfigError, match=r"no study file 'quickstrat' here.*quickstart"):
        locate("quickstrat")
