"""The code of a person's own network, as a study file or a zoo names it."""

from __future__ import annotations

_NETWORK = """
import os
from pathlib import Path
from torch import nn
from kt_ray import register
from kt_ray.networks.resnet import ResidualBlock

{first}

@register.network("mine")
class Mine:
    image_shape, classes, mean, deviation = (1, 28, 28), 10, (), ()

    def __init__(self, options): ...

    def build(self):
        return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), ResidualBlock(4, 4), nn.Flatten(), nn.Linear(196, 10))

    def sites(self):
        return ("1",)
"""


def network_code(first: str) -> str:
    """Return the text of a file that runs the line `first`, then registers the network `mine`."""
    return _NETWORK.format(first=first)
