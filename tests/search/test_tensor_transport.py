"""Tensors in Ray's object store: one copy, however often they are read."""

from __future__ import annotations

import ray
import torch

from kt_ray.config import MemberCounts
from kt_ray.networks import PaperArchitecture
from kt_ray.search.tensor_transport import tensors_as_arrays
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo


def test_readers_of_a_zoo_share_its_memory(ray_session: None) -> None:
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=64, selection=1, test=1))
    with tensors_as_arrays():
        reference = ray.put(zoo)

    first, second = (ray.get(reference) for _ in range(2))

    assert isinstance(first, Zoo)
    assert all(torch.equal(value, zoo.parameters[name]) for name, value in first.parameters.items())
    name = "source.conv1.weight"
    assert first.parameters[name].data_ptr() == second.parameters[name].data_ptr()
