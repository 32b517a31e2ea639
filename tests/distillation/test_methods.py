"""Every loss on fixed tensors, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kt_ray.config import ATOptions, FTOptions, KDOptions, MethodConfig
from kt_ray.distillation.factors import Paraphraser
from kt_ray.distillation.features import Outputs
from kt_ray.distillation.methods import (
    AttentionTransfer,
    FactorTransfer,
    KnowledgeDistillation,
    build_method,
    method_layers,
)

LABELS = torch.tensor([0])
EVEN = torch.zeros(1, 2)  # logits of probabilities 1/2, 1/2


def test_kd_by_hand() -> None:
    term = KnowledgeDistillation(KDOptions(temperature=2.0))
    targets = term.targets(Outputs(torch.tensor([[0.0, 2 * math.log(3)]])))  # at T = 2: 1/4, 3/4
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # 0.130812
    assert term(Outputs(EVEN), targets).item() == pytest.approx(4 * divergence) == pytest.approx(0.523249, abs=1e-5)


def test_at_by_hand() -> None:
    shapes = {"a": (2, 1, 2)}, {"b": (1, 1, 2)}
    term = AttentionTransfer(ATOptions(layers=("a:b",)), *shapes)
    targets = term.targets(Outputs(EVEN, {"a": torch.tensor([1.0, 2.0]).expand(1, 2, 1, 2)}))  # (1, 4) / √17
    student = Outputs(EVEN, {"b": torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)})  # (4, 0) / 4
    # ((1 − 1/√17)² + (4/√17)²) / 2 = 1 − 1/√17
    assert term(student, targets).item() == pytest.approx(1 - 1 / math.sqrt(17))


def set_to_pass(module: torch.nn.Sequential) -> None:
    """Make a stack of convolutions of one channel hand positive maps on as they are."""
    with torch.no_grad():
        for layer in list(module)[::2]:
            layer.weight.zero_()
            layer.weight[0, 0, 1, 1] = 1
            layer.bias.zero_()


def factor_transfer(teacher_size: tuple[int, int] = (1, 2), **options: float) -> FactorTransfer:
    """FT between maps of one channel, whose paraphraser and translator hand positive maps on."""
    paraphraser = Paraphraser(1, 1.0)
    set_to_pass(paraphraser.encoder)
    shapes = {"a": (1, *teacher_size)}, {"a": (1, 1, 2)}
    term = FactorTransfer(FTOptions(layers=("a",), **options), *shapes, {"a": paraphraser}, seed=0)
    set_to_pass(term.translators[0].encoder)
    return term


def test_ft_by_hand() -> None:
    term = factor_transfer()
    targets = term.targets(Outputs(EVEN, {"a": torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)}))
    student = Outputs(EVEN, {"a": torch.tensor([5.0, 0.0]).view(1, 1, 1, 2)})
    assert term(student, targets).item() == pytest.approx(0.6)  # (|1 − 0.6| + |0 − 0.8|) / 2
    assert factor_transfer(p=2.0)(student, targets).item() == pytest.approx(0.4)


def test_larger_maps_are_averaged_to_the_smaller() -> None:
    term = factor_transfer(teacher_size=(2, 4))
    maps = torch.tensor([[2.0, 4.0, 4.0, 4.0], [2.0, 4.0, 4.0, 4.0]]).view(1, 1, 2, 4)  # averages 3 and 4
    assert torch.allclose(term.targets(Outputs(EVEN, {"a": maps}))[0], torch.tensor([[0.6, 0.8]]))


def test_the_papers_loss_is_cross_entropy_plus_500_distances() -> None:
    assert MethodConfig().name == "ft"
    term = factor_transfer()
    method = build_method(
        MethodConfig(ft=FTOptions(layers=("a",))),
        {"a": (1, 1, 2)},
        {"a": (1, 1, 2)},
        {"a": term.paraphrasers[0]},
        seed=0,
    )
    set_to_pass(method.terms["ft"].translators[0].encoder)
    targets = method.targets(Outputs(EVEN, {"a": torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)}))
    parts = method(Outputs(EVEN, {"a": torch.tensor([5.0, 0.0]).view(1, 1, 1, 2)}), LABELS, targets)
    assert parts["loss"].item() == pytest.approx(math.log(2) + 500 * 0.6)


def test_kd_weighs_the_labels_down_and_ft_kd_adds_both() -> None:
    config = MethodConfig(name="ft+kd", kd=KDOptions(temperature=2.0, alpha=0.25), ft=FTOptions(layers=("a",), beta=10))
    term = factor_transfer()
    method = build_method(config, {"a": (1, 1, 2)}, {"a": (1, 1, 2)}, {"a": term.paraphrasers[0]}, seed=0)
    set_to_pass(method.terms["ft"].translators[0].encoder)
    teacher = Outputs(torch.tensor([[0.0, 2 * math.log(3)]]), {"a": torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)})
    student = Outputs(EVEN, {"a": torch.tensor([5.0, 0.0]).view(1, 1, 1, 2)})
    parts = method(student, LABELS, method.targets(teacher))
    assert parts["loss"].item() == pytest.approx(0.75 * math.log(2) + 0.25 * 0.523249 + 10 * 0.6, abs=1e-4)


def test_none_is_cross_entropy() -> None:
    method = build_method(MethodConfig(name="none"), {}, {}, {}, seed=0)
    parts = method(Outputs(EVEN), LABELS, method.targets(Outputs(EVEN)))
    assert parts["loss"].item() == parts["cross_entropy"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("none", ()), ("kd", ()), ("at", ("stage1", "stage2", "stage3")), ("ft", ("stage3",)), ("ft+kd", ("stage3",))],
)
def test_layers_that_a_method_reads(name: str, layers: tuple[str, ...]) -> None:
    assert method_layers(MethodConfig.model_validate({"name": name})) == (layers, layers)
