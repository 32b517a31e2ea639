from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kt_ray.config import NetworkConfig
from kt_ray.networks import Architecture, PaperArchitecture
from kt_ray.zoo.training.fused import SourceNetwork, TargetNetwork, arrays

SHAPES = [
    PaperArchitecture("basic_to_biased"),
    PaperArchitecture("basic_to_simple", NetworkConfig(channels=4, source_hidden=5, target_hidden=2), (3, 18, 14), 7),
]


def random_network(architecture: Architecture) -> tuple[torch.nn.Sequential, torch.Tensor, torch.Tensor]:
    """A source network with uneven batch norms, one of them negative, and a batch; 19 images fill no vector."""
    torch.manual_seed(0)
    network = architecture.source_network()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, std=0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    with torch.no_grad():
        network.stem.bn.weight[1] *= -1
    return network, torch.rand(19, *architecture.image_shape), torch.randint(0, architecture.classes, (19,))


def lanes_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("architecture", SHAPES)
def test_source_equals_autograd(architecture: Architecture) -> None:
    network, x, labels = random_network(architecture)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradient = {name: torch.full_like(value, 7.0) for name, value in network.named_parameters()}
    fused = SourceNetwork(architecture, len(x))
    for _ in range(2):  # the second time shows that nothing is left over from the first
        fused.stem.x[:, 1:-1, 1:-1] = lanes_last(x)
        fused.stem.forward(arrays(state), fused.p, training=True)
        logits = fused.forward(arrays(state), training=True)
        fused.backward(arrays(state), labels.numpy(), arrays(gradient))
        network.zero_grad()
        expected = network(x)
        cross_entropy(expected, labels).backward()
        torch.testing.assert_close(torch.from_numpy(logits.T), expected, atol=1e-4, rtol=1e-4)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradient[name], parameter.grad, atol=1e-5, rtol=1e-3)
        for name, buffer in network.named_buffers():
            if "running" in name:
                torch.testing.assert_close(state[name], buffer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", SHAPES)
def test_evaluation_mode_equals_torch(architecture: Architecture) -> None:
    network, x, _ = random_network(architecture)
    fused = SourceNetwork(architecture, len(x))
    fused.stem.x[:, 1:-1, 1:-1] = lanes_last(x)
    fused.stem.forward(arrays(network.state_dict()), fused.p, training=False)
    logits = fused.forward(arrays(network.state_dict()), training=False)
    torch.testing.assert_close(torch.from_numpy(logits.T), network.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", SHAPES)
def test_target_equals_autograd(architecture: Architecture) -> None:
    network, x, labels = random_network(architecture)
    network.eval().requires_grad_(False)
    block = architecture.target_block()
    gradient = {name: torch.full_like(value, 7.0) for name, value in block.named_parameters()}
    fused = TargetNetwork(architecture, len(x))
    state = arrays(network.state_dict()) | arrays(block.state_dict())
    fused.stem.x[:, 1:-1, 1:-1] = lanes_last(x)
    fused.stem.forward(state, fused.p, training=False)
    logits = fused.forward(state)
    fused.backward(state, labels.numpy(), arrays(gradient))
    expected = network.head(block(network.stem(x)))
    cross_entropy(expected, labels).backward()
    torch.testing.assert_close(torch.from_numpy(logits.T), expected, atol=1e-4, rtol=1e-4)
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, atol=1e-5, rtol=1e-3)
