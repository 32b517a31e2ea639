"""Translators are evaluated, and baselines made, on a device as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import kt_ray as kt
from kt_ray.config import TranslatorConfig
from kt_ray.data import Dataset, LabelledImages, as_float
from kt_ray.jobs.cuda_graphs import WARM_UP
from kt_ray.networks import State
from kt_ray.translation import baselines
from kt_ray.translation.checkpoint import LoadedTranslator
from kt_ray.translation.evaluation import evaluate
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import Transplants
from kt_ray.zoo.members import Zoo
from tests.devices.pretended import PlacementError, pretended_cuda
from tests.devices.test_translator_training import CASES

Baseline = Callable[[Zoo, Zoo, LabelledImages], State]
BASELINES: dict[str, Baseline] = {
    "zero": lambda train, held_out, _: baselines.zero_block(held_out.architecture, len(held_out)),
    "mean": lambda train, held_out, _: baselines.mean_target(train, len(held_out)),
    "nearest": lambda train, held_out, _: baselines.nearest_target(train, held_out),
    "pruned": lambda _, held_out, __: baselines.one_shot_block(held_out.part("source"), held_out.architecture),
    "projected": lambda _, held_out, images: baselines.projected(held_out, as_float(images.images[:16])),
    "fitted on images": lambda _, held_out, images: baselines.fitted(held_out, 3, images),
    "fitted on strokes": lambda _, held_out, __: baselines.fitted(held_out, 3, "strokes"),
    "fitted on statistics": lambda _, held_out, __: baselines.fitted(held_out, 3, "statistics"),
}


def translator_of(name: str, dataset: Dataset) -> Translator:
    case = CASES[name]
    torch.manual_seed(0)
    translator = build_translator(case.config().translator, case.zoo().architecture)
    if translator.runs_network:
        translator.draw_probes(dataset.train.images, torch.Generator().manual_seed(0))
    return translator.eval()


def on_cpu(state: State) -> State:
    return {name: value.cpu() for name, value in state.items()}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_those_of_the_cpu(random_zoo: Zoo, dataset: Dataset, name: str) -> None:
    make, train, held_out = BASELINES[name], random_zoo.where("train"), random_zoo.where("test")
    expected = make(train, held_out, dataset.selection)
    with pretended_cuda():
        found = make(train.to("cuda"), held_out.to("cuda"), dataset.selection.to("cuda"))
        torch.testing.assert_close(on_cpu(found), expected, atol=1e-6, rtol=1e-5)


def test_steps_of_fitting_do_not_wait(random_zoo: Zoo, dataset: Dataset) -> None:
    held_out, waits = random_zoo.where("test"), []
    for steps in (2, 6):
        with pretended_cuda() as device:
            baselines.fitted(held_out.to("cuda"), steps, dataset.selection.to("cuda"))
            waits.append(device.waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize("name", ["mixer", "network as context", "refined on a mixture from three starts"])
def test_the_table_is_that_of_the_cpu(random_zoo: Zoo, dataset: Dataset, name: str) -> None:
    expected = evaluate(translator_of(name, dataset), random_zoo, dataset, "test", "selection", fit_steps=1)
    with pretended_cuda():
        translator = translator_of(name, dataset).to("cuda")
        found = evaluate(translator, random_zoo, dataset, "test", "selection", fit_steps=1)
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row.accuracies == pytest.approx(other.accuracies, abs=2 / len(dataset.selection)), row.name


def refined_translator(zoo: Zoo, dataset: Dataset, steps: int, sets: int, trained: bool) -> Translator:
    """An untrained translator whose blocks are refined from three starts, the last half of the steps by predictions."""
    options = {"steps": steps, "images": "mixture", "trained": trained, "predictions": 0.5, "starts": 3}
    options |= {"probes": 5, "probe_sets": sets, "width": 8, "heads": 2}
    config = TranslatorConfig.model_validate({"family": "mlp", "mlp": {"width": 8}, "refinement": options})
    torch.manual_seed(0)
    translator = build_translator(config, zoo.architecture).eval()
    translator.draw_probes(dataset.train.images, torch.Generator().manual_seed(0))
    return translator


@pytest.mark.parametrize("trained", [False, True])
def test_replayed_steps_refine_as_the_cpu(random_zoo: Zoo, dataset: Dataset, trained: bool) -> None:
    """Adam's steps are replayed from a CUDA graph for each set of probes and kind of error, and wait for nothing."""
    held_out, sets, waits = random_zoo.where("test"), 5, []
    for steps in (56, 72):
        translator = refined_translator(random_zoo, dataset, steps, sets, trained)
        with torch.no_grad():
            expected = translator(translator.read(held_out.parameters))
            with pretended_cuda() as device:
                ours = copy.deepcopy(translator).to("cuda")
                rows = ours.read(held_out.to("cuda").parameters)
                before = device.waits
                found = ours(rows)
                waits.append(device.waits - before)
                torch.testing.assert_close(on_cpu(found), expected, atol=1e-5, rtol=1e-4)
        calls = steps + 2 * (steps // 8)  # two more starts for an eighth of the steps
        assert device.replays == calls - WARM_UP * 2 * sets  # of two kinds of error
    assert waits[0] == waits[1]


def test_the_public_api_evaluates_where_it_is_told(random_zoo: Zoo, dataset: Dataset) -> None:
    translator = translator_of("mixer", dataset)
    config, images = CASES["mixer"].config().translator, replace(dataset, fingerprint=random_zoo.dataset_fingerprint)
    loaded = LoadedTranslator(translator, config, random_zoo.architecture, {})
    with pretended_cuda() as device:
        found = kt.evaluate(loaded, random_zoo, images, device="cuda")
        assert device.launches
    assert next(translator.parameters()).device.type == "cpu"
    expected = kt.evaluate(loaded, random_zoo, images)
    assert found.row("translated").mean == pytest.approx(expected.row("translated").mean, abs=2 / len(images.selection))


def test_mixed_devices_are_refused(random_zoo: Zoo, dataset: Dataset) -> None:
    """What these tests rest on: a block left on the host is found."""
    held_out = random_zoo.where("test")
    with pretended_cuda():
        mixed = held_out.to("cuda").parameters | {"source.conv1.weight": held_out.parameters["source.conv1.weight"]}
        with pytest.raises(PlacementError):
            translator_of("mixer", dataset).to("cuda")({k[7:]: v for k, v in mixed.items() if k.startswith("source.")})


def test_predictions_are_read_once_a_batch(random_zoo: Zoo, dataset: Dataset) -> None:
    held_out = random_zoo.where("test")

    def waits(images: LabelledImages) -> int:
        with pretended_cuda() as device:
            Transplants(held_out, images, "cuda", keep=0).accuracy(held_out.part("source"))
            return device.waits

    few: Tensor = torch.arange(64)
    assert waits(dataset.selection.take(few)) == waits(dataset.selection)
