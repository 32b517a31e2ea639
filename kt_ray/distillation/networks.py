"""The networks that a teacher's or student's configuration names."""

from __future__ import annotations

import torch
from torch import nn

from kt_ray.config import ClassifierConfig
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.resnet import CifarResNet


def build_network(config: ClassifierConfig, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """A fresh network as `config` says, for images of `image_shape` (C, H, W); its start depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.family == "resnet":
            return CifarResNet(config.resnet, image_shape[0], classes)
        architecture = PaperArchitecture(config.pair, config.network, image_shape, classes)
        return architecture.source_network() if config.family == "source" else architecture.target_network()
