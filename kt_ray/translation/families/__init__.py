"""Translators: networks from the parameters of a source block to those of a target block."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import Architecture
from kt_ray.translation.families import axial_transformer, graph, mixer, mlp, neuron_transformer

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Callable[[TranslatorConfig, Architecture], nn.Module]] = {
    "mixer": mixer.build,
    "mlp": mlp.build,
    "neuron_transformer": neuron_transformer.build,
    "axial_transformer": axial_transformer.build,
    "graph": graph.build,
}
