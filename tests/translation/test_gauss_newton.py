"""Gauss-Newton steps: the Jacobian is autograd's, steps bring predictions nearer, and they can be learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_ray.config import MemberCounts, TranslatorConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import PaperArchitecture
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.checkpoint import load_translator, save_translator
from kt_ray.translation.divergences import tempered_kl
from kt_ray.translation.gauss_newton import LogitJacobian
from kt_ray.translation.probe_images import strokes
from kt_ray.translation.projector import projected_block
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo

COUNTS = MemberCounts(train=2, selection=1, test=1)
CONVOLUTIONS = ("basic_to_simple", "basic_to_biased")
NO_IMAGES = torch.empty(0, 1, 28, 28, dtype=torch.uint8)


def drawn(count: int) -> torch.Tensor:
    return strokes(count, (1, 28, 28), torch.Generator().manual_seed(3))


def translator(zoo: Zoo, steps: int, *, learned: bool = True, probes: int = 8) -> Translator:
    torch.manual_seed(0)
    refinement = {"steps": steps, "method": "gauss_newton", "images": "projection", "rows": 6}
    projection = {"probes": probes, "images": "strokes", "learned": learned}
    options = {"base": "projected", "projection": projection, "refinement": refinement}
    built = build_translator(TranslatorConfig(family="axial_transformer", **options), zoo.architecture)
    built.draw_probes(NO_IMAGES, torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(built.scale)
    return built


@pytest.mark.parametrize("pair", CONVOLUTIONS)
def test_the_jacobian_is_the_one_that_autograd_finds(pair: str) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), COUNTS)
    members = translator(zoo, 1).read(zoo.parameters)
    surroundings = surround(members, stem_activations(members, drawn(3), zoo.architecture), zoo.architecture)
    block = {k: v.requires_grad_() for k, v in projected_block(members, zoo.architecture, drawn(8)).items()}
    directions = torch.randn(len(members["conv1.weight"]), 3, 2, 10, generator=torch.Generator().manual_seed(0))
    rows = LogitJacobian(block, surroundings).rows(directions)
    logits = surroundings.logits(surroundings.features(surroundings.outputs(block)))
    for image in range(3):
        for row in range(2):
            total = (logits[:, image] * directions[:, image, row]).sum()
            gradients = torch.autograd.grad(total, list(block.values()), retain_graph=True)
            for name, gradient in zip(block, gradients, strict=True):
                torch.testing.assert_close(rows[name][:, image, row], gradient.flatten(1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pair", CONVOLUTIONS)
def test_each_step_brings_predictions_nearer(pair: str) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), COUNTS)
    divergences = []
    for steps in (0, 1, 3):
        built = translator(zoo, steps, probes=24).eval()
        members = built.read(zoo.parameters)
        surroundings = built.projector.surroundings(members)
        logits = surroundings.logits(surroundings.features(surroundings.outputs(built(members))))
        divergences.append(float(tempered_kl(logits, surroundings.wanted_logits).mean()))
    assert divergences[2] < divergences[1] < divergences[0]


@pytest.mark.parametrize("learned", [True, False])
def test_probes_and_damping_are_learned_through_the_steps(random_zoo: Zoo, learned: bool) -> None:
    built = translator(random_zoo, 2, learned=learned).train()
    block = built(built.read(random_zoo.parameters))
    sum(value.square().sum() for value in block.values()).backward()
    assert (built.projector.probes.grad is not None) is learned
    for parameter in built.refiner.gauss_newton.parameters():
        assert parameter.grad.abs().sum() > 0


def test_a_translators_file_carries_probes_and_steps(random_zoo: Zoo, tmp_path: Path) -> None:
    built = translator(random_zoo, 1).eval()
    torch.nn.init.normal_(built.refiner.gauss_newton.log_damping)
    save_translator(tmp_path / "t.safetensors", built, built.config, random_zoo.architecture, {})
    loaded = load_translator(tmp_path / "t.safetensors").translator
    members = built.read(random_zoo.parameters)
    for name, value in loaded(members).items():
        torch.testing.assert_close(value, built(members)[name])
    assert [name for name in loaded.state_dict() if name.endswith("probes")] == ["projector.probes"]


def test_other_blocks_are_refused() -> None:
    zoo = untrained_zoo(PaperArchitecture("basic_to_attention"), COUNTS)
    with pytest.raises(ConfigError, match="newton"):
        translator(zoo, 1)


def test_shared_probes_need_a_projected_base() -> None:
    refinement = {"steps": 1, "method": "gauss_newton", "images": "projection"}
    with pytest.raises(ValueError, match="base=pruned"):
        TranslatorConfig(refinement=refinement)
