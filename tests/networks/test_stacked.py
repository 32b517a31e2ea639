"""Many networks at once compute what each computes alone."""

import pytest
import torch

from kt_ray.networks import PAIRS, PaperArchitecture, stacked


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_a_stack_computes_what_its_members_compute(pair: str) -> None:
    architecture = PaperArchitecture(pair)  # type: ignore[arg-type]
    networks = [architecture.target_network().eval() for _ in range(3)]
    for network in networks:
        network.stem.bn.running_mean.normal_()
    stack = stacked.stack(network.state_dict() for network in networks)
    images = torch.rand(4, 1, 28, 28)
    expected = torch.stack([network(images) for network in networks])
    torch.testing.assert_close(stacked.forward(architecture.target_network(), stack, images, shared=True), expected)
    own = images.expand(3, 4, 1, 28, 28)
    torch.testing.assert_close(stacked.forward(architecture.target_network(), stack, own), expected)


def test_surroundings_are_all_but_the_blocks() -> None:
    state = {name: torch.zeros(1) for name in ("stem.bn.bias", "source.bn.bias", "target.bias", "stems", "head.bias")}
    assert list(stacked.surroundings(state)) == ["stem.bn.bias", "head.bias"]


def test_part_undoes_join() -> None:
    stem, head = {"conv.weight": torch.ones(2, 1)}, {"bn.bias": torch.zeros(2)}
    joined = stacked.join(stem=stem, head=head)
    assert sorted(joined) == ["head.bn.bias", "stem.conv.weight"]
    assert stacked.part(joined, "stem").keys() == stem.keys()
    assert stacked.part(joined, "head")["bn.bias"] is head["bn.bias"]
