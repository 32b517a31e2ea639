"""A zoo of networks as initialised, with random BN statistics: for checks of structure and scale, not of accuracy."""

from __future__ import annotations

import pyarrow as pa
import torch
from torch import nn

from kt_ray.config import MemberCounts
from kt_ray.networks import AnyArchitecture, State, stacked
from kt_ray.zoo.members import AnyZoo, Member, members_of, site_columns, zoo_of


def untrained_zoo(architecture: AnyArchitecture, counts: MemberCounts, seed: int = 0) -> AnyZoo:
    """Members as a zoo of `seed` would have, untrained; accuracies in the index are NaN."""
    members = members_of(seed, counts)
    index = pa.table(
        {
            "id": [member.id for member in members],
            "seed": pa.array([member.seed for member in members], pa.int64()),
            "split": [member.split for member in members],
            "epoch": pa.array([0] * len(members), pa.int32()),
            "has_target": [True] * len(members),
            "source_accuracy": [float("nan")] * len(members),
            "target_accuracy": [float("nan")] * len(members),
        }
        | {name: [float("nan")] * len(members) for name in site_columns(architecture)}
    )
    parameters = stacked.stack(_untrained(architecture, member) for member in members)
    return zoo_of(architecture, parameters, index, fingerprint="untrained", dataset_fingerprint="none")


def _untrained(architecture: AnyArchitecture, member: Member) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        parts = architecture.parts()
        for layer in (layer for part in parts.values() for layer in part.modules()):
            buffers = dict(layer.named_buffers(recurse=False))
            if isinstance(layer, nn.BatchNorm2d) and "running_mean" in buffers:  # one that never runs has none
                nn.init.normal_(buffers["running_mean"], std=0.1)
                nn.init.uniform_(buffers["running_var"], 0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)
    return stacked.join(**{name: module.state_dict() for name, module in parts.items()})
