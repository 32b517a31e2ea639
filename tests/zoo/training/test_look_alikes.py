"""A pair that looks like a built-in one but computes something else is trained and evaluated as itself."""

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from kt_ray.config import MemberCounts, NetworkConfig, RecipeConfig
from kt_ray.data import Dataset
from kt_ray.networks import architecture_of, stacked
from kt_ray.networks.blocks import SimpleBlock
from kt_ray.networks.contracts import make_pair
from kt_ray.networks.layouts import BlockLayout
from kt_ray.registry import register, registering
from kt_ray.translation.transplants import transplant_accuracy
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.training import fused
from kt_ray.zoo.training.members import train_members
from kt_ray.zoo.training.stacking import can_group


class Tanh(SimpleBlock):
    """The target with another activation, under the same names of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv2(torch.tanh(self.conv1(x))) + x[..., :: self.stride, :: self.stride])


class BasicToTanh:
    """A pair whose name and layouts are like those of the built-in one."""

    def __init__(self, options: BaseModel) -> None:
        self.ours = make_pair("basic_to_simple")

    def target(self, source: nn.Module) -> nn.Module:
        return Tanh(6, 3)

    def layout(self, source: nn.Module) -> BlockLayout | None:
        return self.ours.layout(source)

    def target_layout(self, target: nn.Module) -> BlockLayout | None:
        return self.ours.target_layout(target)


def test_a_look_alike_gets_its_own_numbers(dataset: Dataset, request: pytest.FixtureRequest) -> None:
    with registering("code of a test"):
        register.pair("basic_to_tanh")(BasicToTanh)
    request.addfinalizer(lambda: register.pair.remove("code of a test"))
    architecture = architecture_of("basic_to_tanh", NetworkConfig(), dataset.image_shape, dataset.classes)
    brief = {"epochs": 1, "steps": 4}
    recipe = RecipeConfig.model_validate({"source": brief, "target": brief})

    parameters, index = train_members(
        members_of(0, MemberCounts(train=1, selection=1, test=1)), recipe, architecture, dataset
    )

    assert not fused.supports_source(architecture)
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
