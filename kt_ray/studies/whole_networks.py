"""Networks by name, and the images on which their blocks are translated: what `kt-ray translate --network` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from kt_ray import data
from kt_ray._io.text import first_line
from kt_ray.config import DatasetConfig, validate
from kt_ray.config.yaml_rules import parse
from kt_ray.data import Dataset
from kt_ray.errors import ConfigError
from kt_ray.jobs.device import native_bfloat16
from kt_ray.networks.contracts import Network, Normalised, built, make_network
from kt_ray.networks.cost import multiply_adds
from kt_ray.translation.probe_images import local_mixture, shapes, strokes
from kt_ray.translation.translate_network import NetworkTranslation, check_images, translate_network
from kt_ray.translation.whole_network import Fitting, SiteReport, usual_steps

TORCHVISION, MIXTURE = "torchvision:", "mixture:"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation, as torchvision's weights expect
PROBES, MOST_PIXELS = 4096, 4096 * 32 * 32  # probes, fewer of large images
FITTED = 4  # the least squares read one of so many probes, at most


@dataclass(frozen=True)
class NetworkRequest:
    """The network of a checkpoint: a registered one or torchvision's, options, image shape (C, H, W) and classes.

    Images are normalised as the registered network says, or as torchvision's weights expect if `imagenet`.
    """

    name: str
    options: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    classes: int
    imagenet: bool = False

    def build(self) -> nn.Module:
        """Return a fresh network. Raises ConfigError if there is none of this name, or its options are wrong."""
        if self.name.startswith(TORCHVISION):
            return _torchvision(self.name.removeprefix(TORCHVISION), self.options, self.classes)
        return built(self._registered())

    def preprocess(self, images: Tensor) -> Tensor:
        """Return `images` in [0, 1] as the network takes them."""
        if self.imagenet:
            mean, deviation = (images.new_tensor(values)[:, None, None] for values in IMAGENET)
            return (images - mean) / deviation
        return images if self.name.startswith(TORCHVISION) else Normalised(self._registered())(images)

    def _registered(self) -> Network:
        return make_network(self.name, self.options, self.image_shape, self.classes)


def translate_named(
    request: NetworkRequest,
    probes: str,
    checkpoint: Path,
    output: Path,
    share: float = 0.5,
    *,
    steps: int | None = None,
    dataset: Dataset | None = None,
    state_dict: str | None = None,
    device: str = "cpu",
    progress: Callable[[SiteReport], None] | None = None,
) -> NetworkTranslation:
    """Translate all residual blocks of the network in `checkpoint` on `probes`: shapes, strokes or mixture:DATASET.

    `steps` of an optimiser follow the least squares, as many as pay for this share if None. Raises ConfigError and
    CheckpointError as `NetworkRequest.build`, `draw_probes` and `translate_network` do.
    """
    if dataset is not None and dataset.image_shape != request.image_shape:
        raise ConfigError(
            f"{dataset.name} has images {dataset.image_shape}, the network takes {request.image_shape}; name another "
            "--dataset"
        )
    network = request.build()
    images = draw_probes(probes, request.image_shape)
    if steps is None:
        check_images(network, request.preprocess(images[:2]))
        steps = usual_steps(share, multiply_adds(network, request.image_shape))
    fitted = min(Fitting.images, len(images) // FITTED)
    fitting = Fitting(images=fitted, steps=steps, bfloat16=native_bfloat16(device))
    return translate_network(
        network,
        checkpoint,
        output,
        images,
        share,
        preprocessing=request.preprocess,
        fitting=fitting,
        dataset=dataset,
        state_dict=state_dict,
        device=device,
        progress=progress,
    )


def draw_probes(kind: str, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return images [N, C, H, W] in [0, 1]: random shapes or strokes, or draws like a dataset's training images.

    Raises ConfigError for another kind, or a dataset of another shape.
    """
    count = max(64, min(PROBES, MOST_PIXELS // (shape[1] * shape[2])))
    generator = torch.Generator().manual_seed(seed)
    if kind in ("shapes", "strokes"):
        return (shapes if kind == "shapes" else strokes)(count, shape, generator)
    if not kind.startswith(MIXTURE):
        raise ConfigError(f"no probes are called {kind!r}; there are shapes, strokes and {MIXTURE}DATASET")
    dataset = data.load_dataset(validate(DatasetConfig, {"name": kind.removeprefix(MIXTURE)}, "mixture"))
    if dataset.image_shape != shape:
        raise ConfigError(f"{dataset.name} has images {dataset.image_shape}, the network takes {shape}; choose another")
    return local_mixture(dataset.train.images, count, generator)


def parse_options(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Return NAME=VALUE as a mapping, values read as YAML. Raises ConfigError without an equals sign."""
    options = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {assignment!r}: expected NAME=VALUE")
        try:
            options[name] = parse(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"--set {assignment!r}: {first_line(error)}; expected NAME=VALUE") from None
    return options


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return CxHxW as three positive integers. Raises ConfigError otherwise."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--image-shape {text!r}: expected CxHxW, such as 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def _torchvision(name: str, options: Mapping[str, Any], classes: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(models):
        raise ConfigError(f"torchvision has no network {name!r}; ResNets that fit are resnet18 and resnet34")
    try:
        network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    except Exception as error:  # its own code raises what it likes
        raise ConfigError(f"torchvision's {name} cannot be built with {dict(options)} ({first_line(error)})") from error
    return network
