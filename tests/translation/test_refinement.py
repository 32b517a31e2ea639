"""Refinement lowers the error on its probes before it is trained, and learns all of its parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kt_ray.config import MemberCounts, MixerOptions, PairName, TranslatorConfig
from kt_ray.networks import PAIRS, PaperArchitecture, State
from kt_ray.translation.adam import MOMENTUM, SECOND_MOMENT, adam
from kt_ray.translation.block_runner import Surroundings, stem_activations, surround
from kt_ray.translation.divergences import tempered_kl
from kt_ray.translation.probe_images import strokes, to_images
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.units import Units, read, target_layout, to_units
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

COUNTS = MemberCounts(train=1, selection=1, test=1)
NO_IMAGES = torch.empty(0, 1, 28, 28, dtype=torch.uint8)  # strokes need none


def config(steps: int) -> TranslatorConfig:
    return TranslatorConfig(mixer=MixerOptions(size="tiny"), refinement={"steps": steps, "probes": 4, "width": 8})


def surrounded(zoo: Zoo, members: State, images: Tensor) -> Surroundings:
    return surround(members, stem_activations(members, images, zoo.architecture), zoo.architecture)


def with_probes(translator: Translator) -> Translator:
    if translator.refiner is not None:
        translator.refiner.draw_probes(NO_IMAGES, torch.Generator())
    return translator


@pytest.mark.parametrize("pair", PAIRS)
def test_untrained_steps_lower_the_error(pair: str) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), COUNTS)
    images = strokes(8, (1, 28, 28), torch.Generator().manual_seed(5))  # not the probes
    errors = {}
    for steps in (0, 8):
        torch.manual_seed(0)
        translator = with_probes(build_translator(config(steps), zoo.architecture)).eval()
        network = zoo.part("source") | {k: v for k, v in zoo.parameters.items() if k.startswith(("stem.", "head."))}
        with torch.no_grad():
            block = translator(network)
            surroundings = surround(network, stem_activations(network, images, zoo.architecture), zoo.architecture)
            logits = surroundings.logits(surroundings.features(surroundings.outputs(block)))
        assert not any(value.requires_grad for value in block.values())
        errors[steps] = float((logits - surroundings.wanted_logits).square().mean())
    assert errors[8] < errors[0]


def divergence(translator: Translator, zoo: Zoo) -> torch.Tensor:
    """Of the translated blocks' tempered predictions on the translator's probes from the source's, a member each."""
    members = translator.read(zoo.parameters)
    images = to_images(translator.refiner.probes.detach())
    surroundings = surround(members, stem_activations(members, images, zoo.architecture), zoo.architecture)
    with torch.no_grad():
        logits = surroundings.logits(surroundings.features(surroundings.outputs(translator.eval()(members))))
    return tempered_kl(logits, surroundings.wanted_logits)


def refined(zoo: Zoo, **options: float) -> Translator:
    torch.manual_seed(0)
    settings = {"steps": 8, "probes": 4, "width": 8} | options
    given = TranslatorConfig(mixer=MixerOptions(size="tiny"), refinement=settings)
    return with_probes(build_translator(given, zoo.architecture))


def test_probes_are_drawn_on_request_and_take_no_part_in_what_else_is_drawn(random_zoo: Zoo) -> None:
    """What begins after the probes is the same whether they are strokes or come of a mixture later."""
    states = []
    for images in ("strokes", "mixture"):
        torch.manual_seed(0)
        settings = {"steps": 2, "probes": 4, "width": 8, "images": images}
        translator = build_translator(TranslatorConfig(refinement=settings), random_zoo.architecture)
        assert not translator.refiner.probes.any()
        states.append(translator.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    torch.manual_seed(0)
    drawn = with_probes(
        build_translator(TranslatorConfig(refinement=settings | {"images": "strokes"}), random_zoo.architecture)
    )
    images = to_images(drawn.refiner.probes.detach())
    assert float(images.std(0).mean()) > 0.05


@pytest.mark.parametrize("trained", [True, False])
def test_probes_and_rates_are_parameters_where_they_are_learned(random_zoo: Zoo, trained: bool) -> None:
    translator = refined(random_zoo, trained=trained)
    names = {name for name, _ in translator.named_parameters() if name.startswith("refiner.")}
    assert {"refiner.probes", "refiner.log_rates"} <= translator.state_dict().keys()
    assert ({"refiner.probes", "refiner.log_rates"} <= names) is trained
    assert bool(names) is trained


def test_last_steps_match_predictions(random_zoo: Zoo) -> None:
    without, matched = (divergence(refined(random_zoo, predictions=share), random_zoo) for share in (0.0, 0.5))
    assert float(matched.mean()) < float(without.mean())


def test_the_best_of_several_starts_goes_on(random_zoo: Zoo) -> None:
    """Of trained targets and blocks that write nothing, each member's nearer one."""
    translator = refined(random_zoo)
    refiner, members = translator.refiner, translator.read(random_zoo.parameters)
    sets = [
        surround(
            members,
            stem_activations(members, torch.rand(4, 1, 28, 28), random_zoo.architecture),
            random_zoo.architecture,
        )
    ]
    layout = target_layout(random_zoo.architecture)
    targets = to_units(random_zoo.part("target"), layout)
    silent = Units(0 * targets.edges, targets.unit, targets.channel)
    best = refiner._best([targets, silent], sets)
    divergences = torch.stack([refiner._divergence(units, sets) for units in (targets, silent)])
    assert (divergences[0] < divergences[1]).any()
    assert (divergences[0] > divergences[1]).any()
    expected = torch.where((divergences[0] <= divergences[1])[:, None, None, None, None], targets.edges, silent.edges)
    assert torch.equal(best.edges, expected)


def test_the_start_that_is_best_after_the_first_steps_goes_on(random_zoo: Zoo) -> None:
    refiner = refined(random_zoo, steps=16).refiner.eval()
    source, members = (
        read(random_zoo.part("source"), random_zoo.architecture, "folded"),
        refined(random_zoo).read(random_zoo.parameters),
    )
    starts = refined(random_zoo)._further_starts(source, 4)
    images = to_images(refiner.probes.detach()).chunk(refiner.sets)
    sets = [surrounded(random_zoo, members, part) for part in images]
    screened = [refiner._steps(start, source, sets, range(2)) for start in starts]
    expected = refiner._steps(refiner._best(screened, sets), source, sets, range(2, 16))
    actual = refiner(starts, source, members)
    torch.testing.assert_close(actual.edges, expected.edges)
    winner = torch.stack([refiner._divergence(units, sets) for units in screened]).argmin(0)
    alone = refiner(starts[:1], source, members)
    assert (winner > 0).any()
    assert not torch.isclose(actual.edges, alone.edges).flatten(1).all(1)[winner > 0].any()


def test_several_starts_keep_other_units(random_zoo: Zoo) -> None:
    units = read(random_zoo.part("source"), random_zoo.architecture, "folded")
    further = refined(random_zoo)._further_starts(units, 3)
    chosen = [[0, 1, 2], [2, 3, 4], [4, 5, 0]]
    for start, kept in zip([units.take(torch.tensor([chosen[0]] * 13)), *further], chosen, strict=True):
        torch.testing.assert_close(start.edges, units.edges[:, kept])


def test_starts_change_nothing_without_refinement(random_zoo: Zoo) -> None:
    blocks = []
    for starts in (1, 3):
        torch.manual_seed(0)
        given = TranslatorConfig(mixer=MixerOptions(size="tiny"), output="direct", refinement={"starts": starts})
        blocks.append(build_translator(given, random_zoo.architecture).eval()(random_zoo.part("source")))
    assert all(torch.equal(value, blocks[1][name]) for name, value in blocks[0].items())


def test_starts_that_diverged_are_passed_over(random_zoo: Zoo) -> None:
    translator = refined(random_zoo)
    members = translator.read(random_zoo.parameters)
    sets = [
        surround(
            members,
            stem_activations(members, torch.rand(4, 1, 28, 28), random_zoo.architecture),
            random_zoo.architecture,
        )
    ]
    targets = to_units(random_zoo.part("target"), target_layout(random_zoo.architecture))
    diverged = Units(targets.edges * torch.nan, targets.unit, targets.channel)
    assert torch.equal(translator.refiner._best([diverged, targets], sets).edges, targets.edges)


@pytest.mark.parametrize("pair", ["basic_to_attention", "basic_to_mlp"])
def test_blocks_of_all_units_have_one_start(pair: PairName) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), COUNTS)
    blocks = [refined(zoo, starts=starts).eval()(refined(zoo).read(zoo.parameters)) for starts in (1, 3)]
    assert all(torch.equal(value, blocks[1][name]) for name, value in blocks[0].items())


def test_gradients_reach_probes_rates_and_layers(random_zoo: Zoo) -> None:
    translator = with_probes(build_translator(config(2), random_zoo.architecture)).train()
    for parameter in translator.refiner.change.written.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    translator(translator.read(random_zoo.parameters))["conv1.weight"].square().sum().backward()
    unreached = [name for name, value in translator.named_parameters() if value.grad is None or not value.grad.any()]
    # Nothing comes after the last step's layer but its own output, and this loss reads incoming weights alone.
    assert not [name for name in unreached if "probes" in name or "change.seen" in name or "change.source" in name]


def test_adam_is_torchs_but_for_its_constants() -> None:

    value = torch.randn(5, dtype=torch.float64)
    reference = value.clone().requires_grad_()
    optimizer = torch.optim.Adam([reference], lr=0.1, betas=(MOMENTUM, SECOND_MOMENT), eps=1e-6)
    first = second = [torch.zeros_like(value)]
    for step in range(1, 5):
        reference.grad = 2 * reference.detach()
        optimizer.step()
        corrections = torch.tensor([1 - MOMENTUM**step, 1 - SECOND_MOMENT**step], dtype=torch.float64)
        direction, first, second = adam([2 * value], first, second, corrections)
        value = value - 0.1 * direction[0]
    torch.testing.assert_close(value, reference.detach())


def test_untrained_refinement_waits_for_evaluation(random_zoo: Zoo) -> None:
    """With `trained: false` the family is trained without the steps, and translates with them."""
    translators = []
    for steps in (0, 4):
        torch.manual_seed(0)
        settings = config(steps).model_dump()
        settings["refinement"]["trained"] = False
        translators.append(with_probes(build_translator(TranslatorConfig(**settings), random_zoo.architecture)))
    plain, refined = translators
    refined.load_state_dict(plain.state_dict(), strict=False)
    source = refined.read(random_zoo.parameters)
    blocks = []
    for translator in translators:
        torch.manual_seed(0)  # dropout
        blocks.append(translator.train()(source)["conv1.weight"])
    torch.testing.assert_close(*blocks)
    plain.eval(), refined.eval()
    assert not torch.allclose(refined(source)["conv1.weight"], plain(source)["conv1.weight"])
