"""Translators: networks from the parameters of a source block to those of a target block.

`register.family` decorates a class of modules from `Units` to `Units` (see `kt_ray.translation.units`), called with the
family's options, the translator's configuration and the architecture of its blocks.
"""

from __future__ import annotations

from kt_ray.config.translator import FAMILIES
from kt_ray.translation.families import axial_transformer, graph, mixer, mlp, neuron_transformer

__all__ = ["FAMILIES", "axial_transformer", "graph", "mixer", "mlp", "neuron_transformer"]
