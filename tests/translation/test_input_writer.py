"""What least squares looks at where a translator carries no image."""

from __future__ import annotations

import pytest
import torch

from kt_ray.config import PairChoice, TranslatorConfig
from kt_ray.config.network import NetworkChoice
from kt_ray.errors import ConfigError
from kt_ray.networks import State, architecture_of
from kt_ray.translation.augmentations import permute_channels
from kt_ray.translation.input_writer import InputWriter
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.zoo.members import Zoo


def writer(zoo: Zoo) -> InputWriter:
    torch.manual_seed(0)
    return InputWriter(4, zoo.architecture)


def translator(zoo: Zoo) -> Translator:
    torch.manual_seed(0)
    projection = {"probes": 4, "images": "written", "learned": True}
    config = TranslatorConfig(family="axial_transformer", base="projected", projection=projection)
    return build_translator(config, zoo.architecture)


def test_a_permutation_of_the_stems_channels_permutes_what_is_written(random_zoo: Zoo) -> None:
    order = torch.tensor([3, 1, 0, 5, 4, 2]).expand(len(random_zoo), -1)
    permuted = permute_channels(random_zoo.parameters, order, random_zoo.architecture)
    write = writer(random_zoo)
    torch.testing.assert_close(write(permuted), write(random_zoo.parameters)[:, order[0]])


def test_what_is_written_follows_the_scale_of_the_stem(random_zoo: Zoo) -> None:
    scaled: State = dict(random_zoo.parameters)
    scaled |= {name: 3 * scaled[name] for name in ("stem.bn.weight", "stem.bn.bias")}
    write = writer(random_zoo)
    torch.testing.assert_close(write(scaled), 3 * write(random_zoo.parameters))


def test_no_image_is_carried_and_the_writer_learns_through_the_least_squares(random_zoo: Zoo) -> None:
    built = translator(random_zoo)
    built.draw_probes(torch.empty(0, 1, 28, 28, dtype=torch.uint8), torch.Generator())
    assert built.state_dict()["projector.probes"].numel() == 0
    block = built(built.read(random_zoo.parameters))
    sum(value.square().sum() for value in block.values()).backward()
    gradients = [parameter.grad for parameter in built.projector.writer.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_stems_of_other_networks_are_refused() -> None:
    choice = NetworkChoice(name="resnet", options={"depth": 8})
    architecture = architecture_of(PairChoice(name="halved", site="layer1.0"), choice, (1, 28, 28), 10)
    with pytest.raises(ConfigError, match="images"):
        InputWriter(4, architecture)
