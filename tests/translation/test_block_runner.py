"""The fast way to run members agrees with the plain one."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import MemberCounts
from kt_ray.networks import PAIRS, PaperArchitecture, stacked
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.patches import unfold
from kt_ray.translation.transplants import readable
from kt_ray.zoo.untrained import untrained_zoo


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_the_modules(pair: str, shape: tuple[int, int, int]) -> None:
    zoo = untrained_zoo(PaperArchitecture(pair, image_shape=shape), MemberCounts(train=1, selection=1, test=1))
    architecture, images = zoo.architecture, torch.rand(5, *shape)
    activations = stem_activations(readable(zoo), images, architecture)
    expected = stacked.forward(architecture.stem(), zoo.part("stem"), images, shared=True)
    torch.testing.assert_close(activations.movedim(-1, 1), expected, atol=1e-5, rtol=1e-4)

    surroundings = surround(readable(zoo), activations, architecture)
    wanted = stacked.forward(architecture.source_network(), zoo.network("source"), images, shared=True)
    torch.testing.assert_close(surroundings.wanted_logits, wanted, atol=1e-4, rtol=1e-3)
    given = surroundings.logits(surroundings.features(surroundings.outputs(zoo.part("target"))))
    expected = stacked.forward(architecture.target_network(), zoo.network("target"), images, shared=True)
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-3)


def test_patches_have_the_gradients_of_plain_slices() -> None:
    x = torch.randn(2, 3, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    for stride in (1, 2):
        plain = torch.nn.functional.unfold(x.movedim(-1, 0).flatten(0, 1), 3, padding=1, stride=stride)
        expected = plain.reshape(2, 2, 27, -1).movedim(0, -1).flatten(2)
        torch.testing.assert_close(unfold(x, stride), expected)
        assert torch.autograd.gradcheck(lambda y, stride=stride: unfold(y, stride), x)
        assert torch.autograd.gradgradcheck(lambda y, stride=stride: unfold(y, stride).square(), x)
