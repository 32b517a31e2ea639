"""A pair that looks like a built-in one but computes something else is trained and evaluated as itself."""

import pytest
import torch
from torch import Tensor

from kt_ray.config import MemberCounts, RecipeConfig
from kt_ray.data import Dataset
from kt_ray.networks import PAIRS, Architecture, BlockPair, stacked
from kt_ray.networks.blocks import SimpleBlock
from kt_ray.translation.evaluation import transplant_accuracy
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.training import fused
from kt_ray.zoo.training.members import train_members
from kt_ray.zoo.training.stacking import can_group


class Tanh(SimpleBlock):
    """The target with another activation, under the same names of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv2(torch.tanh(self.conv1(x))) + x[..., :: self.stride, :: self.stride])


def test_a_look_alike_gets_its_own_numbers(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = PAIRS["basic_to_simple"]
    pair = BlockPair("basic_to_tanh", ours.source, lambda n, s: Tanh(n.channels, n.target_hidden, stride=s))  # type: ignore[arg-type]
    monkeypatch.setitem(PAIRS, "basic_to_tanh", pair)
    architecture = Architecture("basic_to_tanh")  # type: ignore[arg-type]
    brief = {"epochs": 1, "steps": 4}
    recipe = RecipeConfig.model_validate({"source": brief, "target": brief})

    parameters, index = train_members(
        members_of(0, MemberCounts(train=1, selection=1, test=1)), recipe, architecture, dataset
    )

    assert fused.supports_source(architecture)
    assert not fused.supports_target(architecture)
    assert not can_group(architecture.target_block())
    zoo = Zoo(architecture, parameters, index, "look-alike", dataset.fingerprint)
    images = dataset.selection
    for row, noted in enumerate(index["target_accuracy"].to_pylist()):
        state = {name: value[row] for name, value in zoo.network("target").items()}
        network = architecture.target_network()
        network.load_state_dict(state, strict=False)
        hits = network.eval()(images.images / 255).argmax(1) == images.labels
        assert noted == pytest.approx(float(hits.float().mean()), abs=0.01)
    accuracies = transplant_accuracy(zoo, stacked.part(parameters, "target"), images)
    assert accuracies.tolist() == pytest.approx(index["target_accuracy"].to_pylist(), abs=0.01)
