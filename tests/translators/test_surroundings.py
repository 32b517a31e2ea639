"""The fast way to run members agrees with the plain one."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import MemberCounts
from kt_ray.evaluation import readable
from kt_ray.networks import PAIRS, Architecture, stacked
from kt_ray.translators.surroundings import Surroundings, stem_activations
from kt_ray.zoo.untrained import untrained_zoo


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_the_modules(pair: str, shape: tuple[int, int, int]) -> None:
    zoo = untrained_zoo(Architecture(pair, image_shape=shape), MemberCounts(train=1, selection=1, test=1))
    architecture, images = zoo.architecture, torch.rand(5, *shape)
    activations = stem_activations(readable(zoo), images)
    expected = stacked.forward(architecture.stem(), zoo.part("stem"), images, shared=True)
    torch.testing.assert_close(activations.transpose(1, 2), expected, atol=1e-5, rtol=1e-4)

    surroundings = Surroundings(readable(zoo), activations, architecture)
    wanted = stacked.forward(architecture.source_network(), zoo.network("source"), images, shared=True)
    torch.testing.assert_close(surroundings.wanted_logits, wanted, atol=1e-4, rtol=1e-3)
    given = surroundings.logits(surroundings.features(surroundings.outputs(zoo.part("target"))))
    expected = stacked.forward(architecture.target_network(), zoo.network("target"), images, shared=True)
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-3)
