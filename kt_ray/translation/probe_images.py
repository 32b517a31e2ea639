"""Images that a translator carries to run networks on: random strokes or shapes, or draws from a mixture fitted to
images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from kt_ray.data import as_float
from kt_ray.errors import DataError

Curves = tuple[Tensor, Tensor]

FITTED = 20_000  # images that the mixture is fitted to, at most
FEWEST = 5  # images of a component: draws of one are its image itself, draws of two lie on the line between them
CLUSTERS, PER_CLUSTER = 200, 50  # components; images that each needs on average
NEIGHBOURS, VALUES = 8, 256 * 28 * 28  # images of a component of a local mixture; values that are drawn at a time
RANK = 40  # principal directions of a component
SHARPNESS = 10.0  # probes are sigmoids of so many times their parameters, which so move as fast as weights should


def strokes(count: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """Images [count, C, H, W] in [0, 1] of one to three random curves (quadratic Béziers) each, light on dark."""
    return drawn_curves(random_curves(count, shape, generator), shape)


def random_curves(count: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Curves:
    """Control points of three curves an image and channel, [count, C, 3, 3, 2] in pixels; how many count [count, C, 1].

    They hold all that is random in `strokes`, and cost next to nothing beside drawing them.
    """
    channels, *size = shape
    device = None if generator is None else generator.device
    places = torch.rand(count, channels, 3, 3, 2, generator=generator, device=device)
    points = torch.stack([(0.18 + 0.64 * places[..., axis]) * size[axis] for axis in (0, 1)], dim=-1)
    return points, torch.randint(1, 4, (count, channels, 1), generator=generator, device=device)


def drawn_curves(curves: Curves, shape: tuple[int, int, int]) -> Tensor:
    """The images of `strokes` that have these curves."""
    points, number = curves
    count, (channels, height, width), device = len(points), shape, points.device
    along = torch.linspace(0, 1, max(height, width), device=device)[:, None]
    start, middle, end = (points[..., None, control, :] for control in range(3))
    path = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * end  # [count, C, 3, T, 2]
    drawn = torch.arange(3, device=device) < number
    pixels = torch.cartesian_prod(torch.arange(height, device=device), torch.arange(width, device=device)).float()
    distance = torch.cdist(path.flatten(2, 3), pixels).square()  # [count, C, 3·T, H·W]
    radius = 0.03 * min(height, width)
    light = 1.3 * torch.exp(-distance / (2 * radius**2)) * drawn.repeat_interleave(len(along), 2)[..., None]
    return light.amax(2).clamp(0, 1).reshape(count, channels, height, width)


def shapes(count: int, shape: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
    """Images [count, C, H, W] in [0, 1] of one filled, textured shape each, light on dark: networks for photographs or
    clothes, which strokes leave all but silent, answer to them.

    A shape is a superellipse whose outline is bent by a smooth random field; its light varies at several scales.
    """
    channels, height, width = shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    def field(planes: int, cells: int) -> Tensor:
        drawn = torch.randn(count, planes, cells, cells, generator=generator)
        return F.interpolate(drawn, (height, width), mode="bicubic", align_corners=True)

    y = (torch.linspace(-1, 1, height)[:, None] - uniform(-0.2, 0.2)) / uniform(0.3, 1.0)
    x = (torch.linspace(-1, 1, width) - uniform(-0.2, 0.2)) / uniform(0.3, 1.0)
    power = uniform(2, 6)
    inside = torch.sigmoid(12 * (1 - x.abs() ** power - y.abs() ** power + 0.5 * field(1, 4)))
    grain = torch.randn(count, channels, height, width, generator=generator) * uniform(0, 0.16)
    light = uniform(0, 1) + 0.25 * field(channels, 3) + 0.15 * field(channels, 8) + grain
    return (inside * light.clamp(0.05, 1)).clamp(0, 1)


def mixture(images: Tensor | Mixture, count: int, generator: torch.Generator) -> Tensor:
    """`count` new images [count, C, H, W] in [0, 1] like `images`, uint8 [N, C, H, W], none of which is kept.

    They are drawn from a mixture of Gaussians (k-means clusters, each with the covariance of its first principal
    directions). Such sums are blurred, so a drawn image's values are replaced, rank by rank, by the mean sorted values
    of its cluster's images. Clusters of fewer than `FEWEST` images are left out. The mixture depends on `images` alone;
    `generator` draws from it. `images` may be the fitted mixture itself. Raises DataError if there are too few images.
    """
    components, shape = images if isinstance(images, Mixture) else fitted(images)
    sizes = torch.tensor([component.images for component in components], dtype=torch.float32)
    chosen = torch.multinomial(sizes, count, replacement=True, generator=generator)
    drawn = torch.empty(count, shape.numel())
    for number in sorted(set(chosen.tolist())):
        component, places = components[number], chosen == number
        weights = torch.randn(int(places.sum()), len(component.directions), generator=generator)
        new = component.mean + weights @ component.directions
        drawn[places] = _with_values(new, component.values)
    return drawn.reshape(count, *shape)


def local_mixture(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` new images [count, C, H, W] in [0, 1] like `images`, uint8 [N, C, H, W], none of which is kept.

    As `mixture`, but each is drawn from a Gaussian of its own: that of one image and those nearest to it, `NEIGHBOURS`
    in all, compared at half the resolution. So rare images are drawn as often as they occur, and patterns stay sharp,
    but the mixture is as large as `images`. Raises DataError if there are too few.
    """
    if len(images) < NEIGHBOURS:
        raise DataError(f"a mixture is fitted to at least {NEIGHBOURS} training images, got {len(images)}; give more")
    size = max(1, VALUES // images[0].numel())
    small = torch.cat([F.avg_pool2d(as_float(part), 2).flatten(1) for part in torch.split(images, size)])
    lengths = small.square().sum(1)
    centres = torch.randint(len(images), (count,), generator=generator)
    drawn = []
    for part in torch.split(centres, size):
        nearest = (lengths - 2 * small[part] @ small.T).topk(NEIGHBOURS, largest=False).indices
        members = as_float(images[nearest.flatten()]).reshape(*nearest.shape, -1)  # [part, NEIGHBOURS, D]
        mean = members.mean(1, keepdim=True)
        weights = torch.randn(len(part), 1, NEIGHBOURS, generator=generator) / NEIGHBOURS**0.5
        new = (mean + weights @ (members - mean))[:, 0]
        drawn.append(_with_values(new, members.sort(2).values.mean(1)))
    return torch.cat(drawn).reshape(count, *images.shape[1:])


def _with_values(images: Tensor, values: Tensor) -> Tensor:
    """`images` [N, D] with their values replaced, rank by rank, by ascending `values` [D] or [N, D]."""
    return torch.empty_like(images).scatter_(1, images.argsort(1), values.expand_as(images))


def to_parameters(images: Tensor) -> Tensor:
    """Images in [0, 1] as the parameters that a translator carries."""
    return torch.logit(images.clamp(0.02, 0.98)) / SHARPNESS


def to_images(parameters: Tensor) -> Tensor:
    """The inverse of `to_parameters`, for values that stay within (0, 1)."""
    return torch.sigmoid(SHARPNESS * parameters)


@dataclass(frozen=True, eq=False)
class Component:
    """A Gaussian of a mixture: how many `images` it was fitted to, their `mean` [D], principal `directions` [R, D],
    each as long as the deviation along it, and mean sorted `values` [D]."""

    images: int
    mean: Tensor
    directions: Tensor
    values: Tensor


class Mixture(NamedTuple):
    """A mixture's Gaussians, and the shape [C, H, W] of its images."""

    components: tuple[Component, ...]
    shape: torch.Size


@functools.lru_cache(maxsize=1)
def fitted(images: Tensor) -> Mixture:
    """Fit the mixture of `images`, uint8 [N, C, H, W]; a process keeps the last one."""
    generator = torch.Generator().manual_seed(0)
    x = as_float(images[torch.randperm(len(images), generator=generator)[:FITTED]]).flatten(1)
    clusters = max(1, min(CLUSTERS, len(x) // PER_CLUSTER))
    nearest = torch.from_numpy(kmeans2(x.numpy(), clusters, minit="points", missing="warn", seed=0)[1]).long()
    components = []
    for cluster in sorted(set(nearest.tolist())):
        members = x[nearest == cluster]
        if len(members) < FEWEST:
            continue
        mean = members.mean(0)
        _, deviations, directions = torch.linalg.svd(members - mean, full_matrices=False)
        directions = directions[:RANK] * deviations[:RANK, None] / len(members) ** 0.5
        components.append(Component(len(members), mean, directions, members.sort(1).values.mean(0)))
    if not components:
        raise DataError(
            f"a mixture is fitted to at least {FEWEST} training images, got {len(x)}; give more, or choose strokes"
        )
    return Mixture(tuple(components), images.shape[1:])
