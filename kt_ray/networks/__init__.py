"""Blocks, block pairs and the networks they sit in."""

from kt_ray.networks import stacked
from kt_ray.networks.pairs import PAIRS, READ_STRIDE, Architecture, BlockPair
from kt_ray.networks.stacked import State

__all__ = ["PAIRS", "READ_STRIDE", "Architecture", "BlockPair", "State", "stacked"]
