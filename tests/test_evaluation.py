"""Transplants at once equal transplants one by one; the table holds every row."""

from __future__ import annotations

import json

import pytest
import torch

from kt_ray.config import MemberCounts, MixerOptions, TranslatorConfig
from kt_ray.data import Dataset
from kt_ray.evaluation import Evaluation, Transplants, evaluate, transplant_accuracy
from kt_ray.networks import PAIRS, Architecture
from kt_ray.translators import build_translator
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

ROWS = [
    "source", "trained target", "translated", "random target", "zero block", "nearest member's target",
    "mean target", "pruned block", "merged block", "transported block",
]  # fmt: skip


@pytest.mark.parametrize("block", ["source", "target"])
def test_accuracy_is_that_of_the_networks_one_by_one(random_zoo: Zoo, dataset: Dataset, block: str) -> None:
    accuracies = transplant_accuracy(random_zoo, random_zoo.part(block), dataset.selection)
    images = dataset.selection.images.float() / 255
    for row in range(len(random_zoo)):
        architecture = random_zoo.architecture
        network = architecture.source_network() if block == "source" else architecture.target_network()
        state = {name: value[row] for name, value in random_zoo.network(block).items()}
        network.load_state_dict(state, strict=False)
        predicted = network.eval()(images).argmax(1)
        assert float(accuracies[row]) == pytest.approx(
            float((predicted == dataset.selection.labels).float().mean()), abs=0.01
        )


def test_kept_activations_change_no_prediction(random_zoo: Zoo, dataset: Dataset) -> None:
    blocks = {name: random_zoo.part(name) for name in ("source", "target")}
    kept, again = Transplants(random_zoo, dataset.selection), Transplants(random_zoo, dataset.selection, keep=0)
    assert kept.kept is not None
    assert again.kept is None
    for _ in range(2):
        for name, classes in kept.predictions(blocks).items():
            assert classes.shape == (len(random_zoo), len(dataset.selection))
            assert torch.equal(classes, again.predictions(blocks)[name])


def test_table(random_zoo: Zoo, dataset: Dataset) -> None:
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)
    evaluation = evaluate(translator, random_zoo, dataset, images="selection")
    assert [row.name for row in evaluation.rows] == ROWS
    assert evaluation.row("source").agreement == 1
    assert (evaluation.member_count, evaluation.image_count) == (3, 128)
    for row in evaluation.rows:
        assert len(row.accuracies) == 3
        assert row.min <= row.mean <= row.max
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert values["rows"][0]["name"] == "source"
    assert Evaluation.from_dict(values) == evaluation
    lines = evaluation.to_markdown().splitlines()
    assert lines[0] == "3 test members, 128 selection images of mnist5k"
    assert len(lines) == 4 + len(ROWS)


def test_cost_is_that_of_the_papers_blocks(random_zoo: Zoo, dataset: Dataset) -> None:
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)
    evaluation = evaluate(translator, random_zoo, dataset, images="selection")
    source, target = evaluation.row("source"), evaluation.row("translated")
    assert (source.parameters, source.multiply_adds) == (672, 648 * 14 * 14)
    assert (target.parameters, target.multiply_adds) == (324, 324 * 14 * 14)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_evaluated(pair: str, dataset: Dataset) -> None:
    zoo = untrained_zoo(Architecture(pair), MemberCounts(train=2, selection=1, test=2))
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), zoo.architecture)
    few = type(dataset)(
        dataset.config, dataset.train, dataset.selection.take(slice(8)), dataset.test, dataset.fingerprint
    )
    assert len(evaluate(translator, zoo, few, images="selection").rows) == len(ROWS)
    assert torch.isfinite(
        torch.tensor([row.mean for row in evaluate(translator, zoo, few, images="selection").rows])
    ).all()
