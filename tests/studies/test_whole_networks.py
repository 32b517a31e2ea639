"""Networks that `kt-ray translate --network` builds by name: those that are registered, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kt_ray.config import ClassifierConfig
from kt_ray.distillation.networks import build_network
from kt_ray.errors import ConfigError
from kt_ray.networks.resnet import ResNetNetwork, ResNetNetworkOptions
from kt_ray.registry import register, registering
from kt_ray.studies.whole_networks import NetworkRequest
from kt_ray.translation.narrowing import residual_blocks

OPTIONS = {"depth": 8, "width": 4, "stem_stride": 2}


@pytest.fixture
def grey() -> Iterator[str]:
    """A person's own network, which takes images less a half and over a quarter."""

    def make(options: object) -> ResNetNetwork:
        return ResNetNetwork(ResNetNetworkOptions(depth=8, image_shape=(1, 12, 12), mean=(0.5,), deviation=(0.25,)))

    with registering("code of a test"):
        register.network("grey")(make)
    yield "grey"
    register.network.remove("code of a test")


def test_a_teacher_that_distillation_trained_is_one_of_them() -> None:
    teacher = build_network(ClassifierConfig.model_validate({"resnet": OPTIONS}), (1, 28, 28), 10, seed=0)
    network = NetworkRequest("cifar_resnet", OPTIONS, (1, 28, 28), 10).build()
    network.load_state_dict(teacher.state_dict())
    assert residual_blocks(network) == ("stage1.0", "stage2.0", "stage3.0")


def test_a_persons_own_network_is_given_images_as_it_says(grey: str) -> None:
    request = NetworkRequest(grey, {}, (1, 12, 12), 10)
    assert residual_blocks(request.build()) == ("layer1.0", "layer2.0", "layer3.0")
    assert torch.equal(request.preprocess(torch.ones(1, 1, 12, 12)), torch.full((1, 1, 12, 12), 2.0))


def test_a_network_for_other_images_is_refused(grey: str) -> None:
    with pytest.raises(ConfigError, match="image_shape"):
        NetworkRequest(grey, {}, (3, 32, 32), 10).build()
