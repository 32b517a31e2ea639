"""Transplants at once equal transplants one by one; the table holds every row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter

from kt_ray.config import MemberCounts, MixerOptions, TranslatorConfig, ZooConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import PAIRS, PaperArchitecture
from kt_ray.translation.evaluation import Evaluation, evaluate
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import Transplants, transplant_accuracy
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.paper_layout import export_zoo, import_zoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

ROWS = [
    "source",
    "trained target",
    "translated",
    "random target",
    "zero block",
    "nearest member's target",
    "mean target",
    "pruned block",
    "merged block",
    "transported block",
    "projected block, random strokes",
    "projected block, training images",
]


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
        assert (row.seconds is None) == (row.name in ("source", "trained target"))
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert values["rows"][0]["name"] == "source"
    assert TypeAdapter(Evaluation).validate_python(values) == evaluation
    lines = evaluation.to_markdown().splitlines()
    assert lines[0] == "3 test members, 128 selection images of mnist5k"
    assert len(lines) == 4 + len(ROWS)


def test_cost_is_that_of_the_papers_blocks(random_zoo: Zoo, dataset: Dataset) -> None:
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)
    evaluation = evaluate(translator, random_zoo, dataset, images="selection")
    source, target = evaluation.row("source"), evaluation.row("translated")
    assert (source.parameters, source.multiply_adds) == (672, 648 * 14 * 14)
    assert (target.parameters, target.multiply_adds) == (324, 324 * 14 * 14)


@pytest.fixture
def few(dataset: Dataset) -> Dataset:
    """Eight selection images, a hundred test images."""
    return replace(dataset, selection=dataset.selection.take(slice(8)), test=dataset.test.take(slice(100)))


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_evaluated(pair: str, few: Dataset) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), MemberCounts(train=2, selection=1, test=2))
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), zoo.architecture)
    rows = evaluate(translator, zoo, few, images="selection").rows
    chooses = pair in ("basic_to_simple", "basic_to_biased")  # others keep all of the source's units
    assert [row.name for row in rows] == [
        name for name in ROWS if chooses or name not in ("merged block", "transported block")
    ]
    assert torch.isfinite(torch.tensor([row.mean for row in rows])).all()


class TestZoosThatLackSomething:
    @pytest.fixture
    def translator(self, random_zoo: Zoo) -> Translator:
        """Untrained."""
        return build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)

    def test_an_imported_zoo(self, translator: Translator, random_zoo: Zoo, few: Dataset, tmp_path: Path) -> None:
        """Its test members have no target, and there is no selection member."""
        export_zoo(random_zoo, tmp_path / "paper")
        store = ZooStore(str(tmp_path / "zoo"))
        import_zoo(tmp_path / "paper", store, ZooConfig(), "basic_to_simple", few)
        evaluation = evaluate(translator, store.read(), few)
        assert [row.name for row in evaluation.rows] == [name for name in ROWS if name != "trained target"]
        assert evaluation.member_count == 5
        before = evaluate(translator, random_zoo, few)
        for row in evaluation.rows:  # exported selection members come first
            if row.name != "random target":
                assert row.accuracies[2:] == before.row(row.name).accuracies
        with pytest.raises(ZooError, match=r"has no selection members, only test, train; .* with --test test members$"):
            evaluate(translator, store.read(), few, members="selection")

    def test_without_training_members(self, translator: Translator, random_zoo: Zoo, few: Dataset) -> None:
        names = [row.name for row in evaluate(translator, random_zoo.where("test"), few, fit_steps=1).rows]
        assert names[: len(ROWS) - 2] == [
            name for name in ROWS if name not in ("nearest member's target", "mean target")
        ]
        assert [name for name in names if name.startswith("fitted on")] == names[len(ROWS) - 2 :]

    def test_beside_others_rows_without_a_target_are_left_out(
        self, translator: Translator, random_zoo: Zoo, few: Dataset
    ) -> None:
        index = random_zoo.index
        has_target = pa.array([name != "test-000001" for name in index["id"].to_pylist()])
        index = index.set_column(index.schema.get_field_index("has_target"), "has_target", has_target)
        evaluation = evaluate(translator, replace(random_zoo, index=index), few)
        assert (evaluation.member_count, evaluation.rows[1].name) == (2, "trained target")
