"""A translator family and a loss term of one's own: a network shared by all hidden units, and an error of outputs.

kt-ray run own_family.yaml --allow-code
"""

import torch
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn

import kt_ray as kt
from kt_ray.config import TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.translation.block_runner import Surroundings
from kt_ray.translation.units import Units, edge_width, feature_widths, layouts


class Options(BaseModel):
    width: PositiveInt = 64


@kt.register.family("shared", options=Options)
class Shared(nn.Module):
    """Each target unit and channel from the source unit of its rank, alone: [B, H, C, token] to [B, K, C, kernels]."""

    def __init__(self, options: Options, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.target = layouts(architecture)[1]
        read = edge_width(config, architecture) + sum(feature_widths(config, architecture))
        kernels, values = self.target.kernels, self.target.values
        self.sizes = [kernels * values, len(self.target.unit), len(self.target.channel)]
        self.network = nn.Sequential(
            nn.Linear(read, options.width), nn.GELU(), nn.Linear(options.width, sum(self.sizes))
        )

    def forward(self, units: Units) -> Units:
        tokens = units.tokens()[:, : self.target.hidden]
        edges, unit, channel = torch.split(self.network(tokens), self.sizes, dim=-1)
        return Units(edges.unflatten(-1, (self.target.kernels, -1)), unit.mean(2), channel.mean(1))


class Power(BaseModel):
    power: float = 1.0


@kt.register.loss("output_power", options=Power)
class OutputPower:
    """Mean of |error of block outputs| to some power over the same of what is wanted."""

    def __init__(self, options: Power) -> None:
        self.power = options.power

    def __call__(self, around: Surroundings, block: dict[str, Tensor], labels: Tensor) -> Tensor:
        error = (around.outputs(block) - around.wanted).abs().pow(self.power)
        return error.flatten(1).mean(1) / around.wanted.abs().pow(self.power).flatten(1).mean(1)
