"""Second-order steps solve what is quadratic at once, and lessen every member's error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kt_ray.config import MemberCounts, TranslatorConfig
from kt_ray.networks import PAIRS, PaperArchitecture
from kt_ray.translation.second_order import Curvature, newton_step
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.untrained import untrained_zoo
from tests.translation.test_refinement import NO_IMAGES, divergence

COUNTS = MemberCounts(train=1, selection=1, test=1)


def least_squares(features: Tensor, wanted: Tensor) -> Curvature:
    """Half the summed squared error of features [B, S, F] times values [B, F] from `wanted` [B, S]."""

    def outputs(values: list[Tensor]) -> list[Tensor]:
        return [torch.einsum("bsf,bf->bs", features, values[0])]

    return Curvature(outputs, lambda found: 0.5 * (found[0] - wanted).square().sum(1), lambda found, moved: [moved[0]])


def test_a_quadratic_is_solved_in_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    features, wanted = torch.randn(3, 40, 5, generator=generator), torch.randn(3, 40, generator=generator)
    solved = newton_step([torch.zeros(3, 5)], least_squares(features, wanted), products=5)[0]
    expected = torch.linalg.lstsq(features, wanted[..., None]).solution[..., 0]
    torch.testing.assert_close(solved, expected, atol=5e-3, rtol=1e-2)


def test_a_member_that_no_step_improves_stays_as_it_is() -> None:
    features, wanted = torch.eye(2).expand(2, 2, 2).clone(), torch.ones(2, 2)
    features[1] = torch.nan
    stepped = newton_step([torch.zeros(2, 2)], least_squares(features, wanted), products=2)[0]
    assert torch.equal(stepped[1], torch.zeros(2))
    torch.testing.assert_close(stepped[0], torch.ones(2), atol=2e-3, rtol=0)


@pytest.mark.parametrize("predictions", [0.0, 1.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_each_step_brings_predictions_nearer(pair: str, predictions: float) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair), COUNTS)
    found = []
    for steps in (1, 2, 4):
        refinement = {
            "steps": steps,
            "method": "newton",
            "trained": False,
            "probes": 8,
            "probe_sets": 1,
            "predictions": predictions,
        }
        torch.manual_seed(0)
        settings = TranslatorConfig(family="axial_transformer", base="merged", refinement=refinement)
        translator = build_translator(settings, zoo.architecture)
        translator.refiner.draw_probes(NO_IMAGES, torch.Generator())
        found.append(divergence(translator, zoo).mean())
    assert found[2] < found[1] < found[0]


def test_newton_is_not_trained_through() -> None:
    with pytest.raises(ValueError, match=r"refinement\.?"):
        TranslatorConfig(refinement={"steps": 2, "method": "newton"})
