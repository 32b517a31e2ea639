"""Parameter counts and losses worked out by hand (arXiv 1802.04977, authors' code)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_ray.distillation.factors import (
    FactorTranslator,
    Paraphraser,
    attention,
    factor_channels,
    factor_distance,
    normalised,
    reconstruction_error,
)
from kt_ray.errors import ConfigError
from kt_ray.networks.cost import parameter_count


def test_parameters_of_the_paraphraser() -> None:
    # C = 4, k = 0.5: weights 9·in·out and one bias an output.
    encoder = (9 * 4 * 4 + 4) + (9 * 4 * 2 + 2) + (9 * 2 * 2 + 2)  # 148 + 74 + 38
    decoder = (9 * 2 * 2 + 2) + (9 * 2 * 4 + 4) + (9 * 4 * 4 + 4)  # 38 + 76 + 148
    assert parameter_count(Paraphraser(4, 0.5)) == encoder + decoder == 522
    # ResNet-56's last maps, 64 channels, as the paper takes them: 36928 + 18464 + 9248 and 9248 + 18496 + 36928.
    assert parameter_count(Paraphraser(64, 0.5)) == 129_312


def test_parameters_of_the_translator() -> None:
    assert parameter_count(FactorTranslator(3, 2)) == (9 * 3 * 3 + 3) + (9 * 3 * 2 + 2) + (9 * 2 * 2 + 2) == 178


def test_every_convolution_has_a_leaky_relu_of_slope_a_tenth_after_it() -> None:
    paraphraser = Paraphraser(4, 0.5)
    for stack in (paraphraser.encoder, paraphraser.decoder, FactorTranslator(3, 2).encoder):
        assert len(stack) == 6
        assert all(layer.negative_slope == 0.1 for layer in list(stack)[1::2] if isinstance(layer, torch.nn.LeakyReLU))
        assert [type(layer).__name__ for layer in list(stack)[1::2]] == ["LeakyReLU"] * 3
    maps = torch.full((1, 1, 3, 3), -1.0)
    with torch.no_grad():  # one channel: identity convolutions, so what is left is three LeakyReLUs
        one = Paraphraser(1, 1.0)
        for layer in list(one.encoder)[::2]:
            layer.weight.zero_()
            layer.weight[0, 0, 1, 1] = 1
            layer.bias.zero_()
        assert torch.allclose(one.encode(maps), maps * 0.1**3)


def test_factor_distance_by_hand() -> None:
    teacher = normalised(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))  # (0.6, 0.8)
    student = normalised(torch.tensor([5.0, 0.0]).view(1, 2, 1, 1))  # (1, 0)
    assert torch.allclose(teacher, torch.tensor([[0.6, 0.8]]))
    assert factor_distance(student, teacher).item() == pytest.approx((0.4 + 0.8) / 2)
    assert factor_distance(student, teacher, p=2).item() == pytest.approx((0.16 + 0.64) / 2)
    assert factor_distance(student, teacher, p=3).item() == pytest.approx((0.064 + 0.512) / 2)


@given(p=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]))
@settings(max_examples=5, deadline=None)
def test_distance_to_itself_has_a_finite_gradient(p: float) -> None:
    factors = normalised(torch.ones(2, 3, 2, 2)).requires_grad_()
    distance = factor_distance(factors, factors.detach(), p)
    distance.backward()
    assert distance.item() == pytest.approx(0, abs=1e-5)
    assert factors.grad is not None
    assert factors.grad.isfinite().all()


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]).unsqueeze(0)  # two channels of 1×2
    assert attention(maps).tolist() == [[[5.0, 10.0]]]  # (1 + 9) / 2, (4 + 16) / 2


def test_reconstruction_error_is_l1() -> None:
    paraphraser = Paraphraser(2, 0.5)
    with torch.no_grad():
        for parameter in paraphraser.parameters():
            parameter.zero_()
    assert reconstruction_error(paraphraser, torch.tensor([1.0, -3.0]).view(1, 2, 1, 1)).item() == 2.0


@given(channels=st.integers(1, 40), student=st.integers(1, 12), rate=st.floats(0.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_teacher_and_student_factors_have_one_shape_for_every_rate(channels: int, student: int, rate: float) -> None:
    if round(channels * rate) < 1:
        with pytest.raises(ConfigError, match="leaves no channel"):
            Paraphraser(channels, rate)
        return
    paraphraser = Paraphraser(channels, rate)
    teacher_factors = paraphraser.encode(torch.randn(2, channels, 4, 4))
    translated = FactorTranslator(student, paraphraser.factors)(torch.randn(2, student, 4, 4))
    assert teacher_factors.shape == translated.shape == (2, round(channels * rate), 4, 4)
    assert paraphraser(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def test_a_rate_that_leaves_no_channel_says_what_would() -> None:
    with pytest.raises(
        ConfigError,
        match=r"paraphraser\.rate=0\.01 leaves no channel of the teacher's 16; "
        r"it must be above 0\.03125",
    ):
        factor_channels(16, 0.01)
