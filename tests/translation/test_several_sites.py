"""Zoos whose networks have a block at each of several sites, and one translator for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optuna.storages import InMemoryStorage
from safetensors.torch import load_file, save_file
from torch import nn

import kt_ray as kt
from kt_ray.config import NetworkChoice, PairChoice, TranslatorConfig, TrialConfig, ZooConfig
from kt_ray.data import Dataset, as_float
from kt_ray.errors import ConfigError, ZooError
from kt_ray.networks import SitesArchitecture, architecture_of, stacked
from kt_ray.search.space import apply
from kt_ray.search.study import SearchStudy
from kt_ray.studies.spaces import bundled
from kt_ray.studies.study_file import read_study
from kt_ray.translation.checkpoint import LoadedTranslator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translate_sites import translate_sites
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.local import build_zoo_locally
from kt_ray.zoo.members import SitesZoo
from kt_ray.zoo.paper_layout import export_zoo
from kt_ray.zoo.store import ZooStore

RESNET = NetworkChoice(name="resnet", options={"depth": 8, "width": 4})
SITES = ("layer1.0", "layer2.0", "layer3.0")
TRIAL = TrialConfig.model_validate(
    {
        "translator": {
            "family": "axial_transformer",
            "axial_transformer": {"width": 8, "depth": 1, "heads": 2},
            "base": "projected",
            "projection": {"probes": 8},
        },
        "augmentation": {"hidden_permutation": True},
        "loss": {"weight_mse": 0, "kl": 1, "images": 4},
        "training": {"epochs": 2, "batch_size": 2, "steps_per_epoch": 4, "ema": 0.9},
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> ZooStore:
    """A zoo of ResNet-8s, trained for a few steps, the last member a brief one."""
    store = ZooStore(str(tmp_path_factory.mktemp("zoo") / "resnet"))
    steps = {"epochs": 1, "steps": 2, "learning_rate": 0.1}
    zoo = ZooConfig.model_validate(
        {
            "members": {"train": 2, "selection": 1, "test": 1, "brief": 1},
            "network": RESNET,
            "recipe": {"source": steps, "target": steps, "brief": steps},
        }
    )
    build_zoo_locally(zoo, PairChoice(name="halved"), dataset, store)
    return store


@pytest.fixture(scope="module")
def zoo(store: ZooStore) -> SitesZoo:
    zoo = store.read()
    assert isinstance(zoo, SitesZoo)
    return zoo


@pytest.fixture(scope="module")
def trained(zoo: SitesZoo, dataset: Dataset) -> TranslatorTraining:
    training = TranslatorTraining(TRIAL, zoo, dataset)
    training.run_epoch()
    return training


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network.eval()(as_float(images)).argmax(1) == labels).double().mean())


def test_the_zoo_keeps_a_network_once_and_a_target_for_each_site(
    store: ZooStore, zoo: SitesZoo, dataset: Dataset
) -> None:
    architecture, member = zoo.architecture, zoo.where("test")
    assert architecture.sites == SITES
    assert not store.verify()
    assert {name.split(".")[0] for name in zoo.parameters} == {"network", "target"}
    assert zoo.parameters["target.layer3.0.conv1.weight"].shape[1:] == (8, 8, 3, 3)

    for site in SITES:  # the index tells of the network with this target in its place
        small = architecture.smaller([site])
        stack = stacked.part(member.parameters, "network")
        stack |= stacked.join(**{site: stacked.part(member.parameters, f"target.{site}")})
        small.load_state_dict({name: stack[name][0] for name in small.state_dict() if name in stack}, strict=False)
        found = accuracy(architecture.taking_images(small), dataset.selection.images, dataset.selection.labels)
        assert found == pytest.approx(member.index[f"target_accuracy/{site}"][0].as_py())
    means = [member.index[f"target_accuracy/{site}"][0].as_py() for site in SITES]
    assert member.index["target_accuracy"][0].as_py() == pytest.approx(sum(means) / 3)


def test_views_share_the_tensors_of_the_zoo(zoo: SitesZoo) -> None:
    first, *_, last = zoo.views()

    assert last.part("source")["conv1.weight"].data_ptr() == zoo.parameters["network.layer3.0.conv1.weight"].data_ptr()
    assert first.where("test").index["target_accuracy"].equals(zoo.where("test").index["target_accuracy/layer1.0"])
    brief = zoo.where("train", with_target=False).take(torch.tensor([0]))
    assert brief.index["id"][0].as_py() == "brief-000000"
    assert brief.views()[1].part("target")["conv1.weight"].isnan().all()


def test_one_set_of_parameters_is_trained_at_all_sites(trained: TranslatorTraining) -> None:
    ours = dict(trained.model.named_parameters())

    for site in trained.sites:
        assert all(value is ours[name] for name, value in site.model.named_parameters())
    assert [site.architecture.sites for site in trained.sites] == [(site,) for site in SITES]


def test_training_taken_up_again_gives_the_same_numbers(zoo: SitesZoo, dataset: Dataset, tmp_path: Path) -> None:
    whole, first, second = (TranslatorTraining(TRIAL, zoo, dataset) for _ in range(3))
    wanted = [whole.run_epoch() for _ in range(2)][1]
    first.run_epoch()
    first.save(tmp_path / "half.safetensors")
    second.load(tmp_path / "half.safetensors")

    found = second.run_epoch()

    changing = ("seconds", "translation_cost")
    assert {name: found[name] for name in found if name not in changing} == {
        name: wanted[name] for name in wanted if name not in changing
    }


def test_the_accuracy_of_whole_networks_is_that_of_translated_checkpoints(
    trained: TranslatorTraining, zoo: SitesZoo, dataset: Dataset, tmp_path: Path
) -> None:
    loaded = LoadedTranslator(trained.translator.eval(), TRIAL.translator, zoo.architecture, {})
    member = zoo.where("test")
    save_file(
        {name: value[0] for name, value in stacked.part(member.parameters, "network").items()},
        tmp_path / "large.safetensors",
    )

    evaluation = kt.evaluate(loaded, zoo, dataset, split="test")
    small = tmp_path / "small.safetensors"
    report = translate_sites(loaded, tmp_path / "none", tmp_path / "large.safetensors", small)

    network = zoo.architecture.smaller(SITES)
    network.load_state_dict(load_file(small), strict=False)
    found = accuracy(zoo.architecture.taking_images(network), dataset.test.images, dataset.test.labels)
    row = evaluation.row("translated, all blocks")
    assert row.mean == pytest.approx(found)
    assert row.parameters == sum(site.parameters_after for site in report.sites)
    assert len(evaluation.row("translated").accuracies) == len(SITES)
    assert "translated, layer2.0" in evaluation.to_markdown()


def test_a_translator_of_all_sites_is_kept_and_read_with_them(
    trained: TranslatorTraining, zoo: SitesZoo, tmp_path: Path
) -> None:
    loaded = LoadedTranslator(trained.translator.eval(), TRIAL.translator, zoo.architecture, {})

    again = kt.load(loaded.save(tmp_path / "translator.safetensors"))

    assert isinstance(again.architecture, SitesArchitecture)
    assert again.architecture == zoo.architecture


def test_what_one_translator_or_layout_cannot_serve_is_refused(zoo: SitesZoo, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlp cannot write the blocks at layer1.0 and layer2.0 with the same"):
        build_translator(TranslatorConfig(family="mlp"), zoo.architecture)
    with pytest.raises(ZooError, match=r"the paper's layout is of the paper's network, this zoo is of resnet"):
        export_zoo(zoo, tmp_path)
    with pytest.raises(ConfigError, match=r"pair.options.sites: layer9 is no site of the network"):
        architecture_of(PairChoice(name="halved", options={"sites": ["layer9"]}), RESNET, (1, 28, 28), 10)
    one = PairChoice(name="halved", options={"sites": ["layer2.0"]})
    assert architecture_of(one, RESNET, (1, 28, 28), 10).sites == ("layer2.0",)


def test_trials_of_the_bundled_search_train_at_all_sites_and_are_compared_by_both_objectives(
    zoo: SitesZoo, dataset: Dataset
) -> None:
    brief = ["trial.training.epochs=1", "trial.training.steps_per_epoch=1", "trial.training.batch_size=2"]
    config = read_study(bundled()["resnet"], [*brief, "trial.translator.axial_transformer.width=8"])
    study = SearchStudy(config, InMemoryStorage())
    for family in ("axial_transformer", "graph"):
        study.optuna.enqueue_trial({"translator.family": family})
        candidate = study.ask()
        metrics = TranslatorTraining(apply(config.trial, candidate.values), zoo, dataset).run_epoch()
        study.report(candidate, 1, metrics, last=True)
        study.end(candidate, metrics, 1.0, pruned=False)
    assert {trial.params["translator.family"] for trial in study.optuna.trials} == {"axial_transformer", "graph"}
    for accuracy_of_networks, cost in (trial.values for trial in study.trials()):
        assert 0 <= accuracy_of_networks <= 1
        assert cost > 0
