"""Baselines of a translator. Every function returns a stack of target blocks, one for each member."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kt_ray.data import LabelledImages, as_float
from kt_ray.networks import Architecture, State, stacked
from kt_ray.translation.bases import BASES, one_shot_block
from kt_ray.translation.block_runner import stem_activations, surround
from kt_ray.translation.divergences import kl, relative_error
from kt_ray.translation.probe_images import strokes
from kt_ray.translation.projector import projected_block
from kt_ray.translation.transplants import readable
from kt_ray.translation.units import layouts, read, target_layout
from kt_ray.zoo.members import Zoo

FIT_RATE, FIT_IMAGES = 1e-2, 32
PROJECTED = 8  # members at once, whose activations stay in the processor's caches
Inputs = LabelledImages | Literal["strokes", "statistics"]


def random_target(architecture: Architecture, members: int, seed: int = 0) -> State:
    """Freshly initialised target blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stacked.stack(architecture.target_block().state_dict() for _ in range(members))


def zero_block(architecture: Architecture, members: int) -> State:
    """Target blocks that write nothing: all outgoing weights and biases are zero, and the input passes."""
    return target_layout(architecture).silenced(random_target(architecture, members))


def mean_target(train: Zoo, members: int) -> State:
    """The mean of the training members' targets."""
    return {
        name: value.mean(0, keepdim=True).expand(members, *value.shape[1:])
        for name, value in train.part("target").items()
    }


def nearest_target(train: Zoo, members: Zoo) -> State:
    """The target of the training member whose source weights are nearest (the paper's greedy replacement)."""
    known, asked = (read(zoo.part("source"), zoo.architecture, "dropped").edges.flatten(1) for zoo in (train, members))
    nearest = torch.cdist(asked, known).argmin(1)
    return stacked.take(train.part("target"), nearest)


def one_shot_bases(architecture: Architecture) -> tuple[str, ...]:
    """Return the names of the `BASES` that give different blocks: a single one if no hidden unit is left out."""
    source, target = layouts(architecture)
    if source.flat or target.flat or target.values not in (1, source.values):
        return ()
    return tuple(BASES) if target.projects_itself and target.hidden < source.hidden else ("pruned",)


def projected(zoo: Zoo, images: Tensor) -> State:
    """The projected block of every member, by least squares on `images`, floats [N, C, H, W]."""
    few = stacked.chunks(readable(zoo), PROJECTED)
    return stacked.concatenate([projected_block(members, zoo.architecture, images) for members in few])


def fitted(zoo: Zoo, steps: int, inputs: Inputs, seed: int = 0) -> State:
    """Target blocks fitted to every member from its pruned block by Adam, on fresh inputs at every step.

    `inputs` are training images; or, which needs no data, random strokes, or block inputs drawn from the source's
    own BN statistics. On images the loss is KL from the source's predictions, on what is made up the error of the
    head's input plus that of the logits (predictions there are too sure to learn from).
    """
    device = stacked.device(zoo.parameters)
    generator = torch.Generator(device).manual_seed(seed)
    members = readable(zoo)
    block = {name: value.clone().requires_grad_() for name, value in one_shot_block(members, zoo.architecture).items()}
    optimizer = torch.optim.Adam(block.values(), lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        with torch.no_grad():
            if inputs == "statistics":
                activations = synthetic_activations(members, zoo.architecture, FIT_IMAGES, generator)
            elif isinstance(inputs, LabelledImages):
                chosen = torch.randint(len(inputs), (FIT_IMAGES,), generator=generator, device=device)
                activations = stem_activations(members, as_float(inputs.images[chosen]), zoo.architecture)
            else:
                drawn = strokes(FIT_IMAGES, zoo.architecture.image_shape, generator)
                activations = stem_activations(members, drawn, zoo.architecture)
            surroundings = surround(members, activations, zoo.architecture)
        features = surroundings.features(surroundings.outputs(block))
        logits = surroundings.logits(features)
        if isinstance(inputs, LabelledImages):
            loss = kl(logits, surroundings.wanted_logits)
        else:
            loss = relative_error(features, surroundings.wanted_features)
            loss = loss + relative_error(logits, surroundings.wanted_logits)
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: value.detach() for name, value in block.items()}


def synthetic_activations(members: State, architecture: Architecture, count: int, generator: torch.Generator) -> Tensor:
    """Block inputs [B, C, H, W, count] made up from the stem's BN alone: smooth Gaussian maps with the mean and
    deviation that BN gives each channel, rectified and pooled."""
    _, height, width = architecture.image_shape
    mean, deviation = members["stem.bn.bias"], members["stem.bn.weight"].abs()
    channels = mean.shape[1]
    noise = torch.randn(count, channels, height // 3, width // 3, generator=generator, device=mean.device)
    smooth = F.interpolate(noise, size=(height, width), mode="bicubic")
    smooth = (smooth / smooth.std()).transpose(0, 1)  # [C, count, H, W]
    maps = torch.relu(mean[..., None, None, None] + deviation[..., None, None, None] * smooth)
    pooled = F.max_pool2d(maps.flatten(0, 1), 3, stride=2, padding=1).permute(0, 2, 3, 1)
    return pooled.reshape(len(mean), channels, *pooled.shape[1:])
