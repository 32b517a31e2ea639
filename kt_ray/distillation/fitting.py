"""Parts of every fit: SGD with a schedule that progress alone decides, and checkpoints that continue exactly."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kt_ray.config import FitConfig
from kt_ray.data import LabelledImages
from kt_ray.distillation.images import Batch, batches
from kt_ray.errors import CheckpointError, ConfigError
from kt_ray.networks.state_file import read_written, write_state

Groups = Sequence[tuple[Sequence[nn.Parameter], float]]


def scheduled(config: FitConfig, step: int, steps: int) -> float:
    """The factor on the learning rate at `step` of `steps` (from 0)."""
    rising = config.warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
    if config.schedule == "steps":
        return float(config.decay ** sum(step >= share * steps for share in config.milestones))
    return 1.0


class ScheduledSGD:
    """SGD over groups of (parameters, learning rate), all under the one schedule of `config`."""

    def __init__(self, config: FitConfig, groups: Groups, steps: int) -> None:
        self.config, self.steps, self.step = config, steps, 0
        self.optimizer = torch.optim.SGD(
            [{"params": list(parameters)} for parameters, _ in groups if parameters],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.rates = [rate for parameters, rate in groups if parameters]

    def descend(self, loss: Tensor) -> None:
        """One step down `loss`."""
        factor = scheduled(self.config, self.step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """The momenta, `momentum.<number of the parameter>`."""
        momenta = {}
        for number, parameter in enumerate(self._parameters()):
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                momenta[f"momentum.{number}"] = momentum
        return momenta

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """The inverse of `state`, at `step`."""
        self.step = step
        for number, parameter in enumerate(self._parameters()):
            if f"momentum.{number}" in state:
                momentum = state[f"momentum.{number}"].to(parameter.device).clone()
                self.optimizer.state[parameter]["momentum_buffer"] = momentum

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Fit(ABC):
    """A training in epochs over images that are deterministic in `seed`; a checkpoint continues to the same numbers.

    `modules` are trained at the given learning rates, and saved, under their names.
    """

    what: ClassVar[str]  # is trained, in words

    def __init__(
        self, config: FitConfig, images: LabelledImages, modules: Mapping[str, tuple[nn.Module, float]], seed: int
    ) -> None:
        self.fit, self.images, self.seed = config, images, seed
        self.steps_per_epoch = -(-len(images) // config.batch_size)
        self._modules = {name: module for name, (module, _) in modules.items()}
        groups = [(list(module.parameters()), rate) for module, rate in modules.values()]
        self.optimizer = ScheduledSGD(config, groups, config.epochs * self.steps_per_epoch)
        self.epoch = 0
        self.seconds = 0.0

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean losses of a batch by name, of which `loss` is descended."""

    def measured(self) -> dict[str, float]:
        """Return what is measured after an epoch besides the losses."""
        return {}

    def run_epoch(self) -> dict[str, float]:
        """Train on every image once; return the mean losses, what was `measured`, and the `seconds` so far.

        Raises ConfigError if the loss is no longer finite.
        """
        start = time.perf_counter()
        for module in self._modules.values():
            module.train()
        sums: dict[str, Tensor] = {}
        for batch in batches(self.images, self.fit, self.seed, self.epoch):
            parts = self.losses(batch)
            self.optimizer.descend(parts["loss"])
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() * len(batch.labels)
        means = {name: float(value) / len(self.images) for name, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise ConfigError(
                f"{self.what} diverged in epoch {self.epoch + 1}: its loss is {means['loss']}; lower its learning_rate"
            )
        metrics = means | self.measured()
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return metrics | {"seconds": self.seconds}

    @property
    def finished(self) -> bool:
        """True if all epochs are done."""
        return self.epoch >= self.fit.epochs

    @property
    def images_seen(self) -> int:
        """Training images read so far, each as often as it was read."""
        return self.epoch * len(self.images)

    def save(self, path: Path) -> None:
        """Write everything needed to go on, as safetensors."""
        parts = {name: module.state_dict() for name, module in self._modules.items()}
        facts = {"epoch": self.epoch, "seconds": self.seconds}
        save_checkpoint(path, parts | {"optimizer": self.optimizer.state()}, facts)

    def load(self, path: Path) -> None:
        """Go on from `path`. Raises CheckpointError if it is of another training."""
        parts, facts = read_checkpoint(path)
        for name, module in self._modules.items():
            load_part(module, parts, name, path)
        try:
            self.epoch, self.seconds = int(facts["epoch"]), float(facts["seconds"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path} does not say after which epoch it was written; remove it") from None
        self.optimizer.restore(parts.get("optimizer", {}), self.epoch * self.steps_per_epoch)


def save_checkpoint(path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """`parts` (name → state) and JSON `facts` as one safetensors file, renamed into place."""
    state = {f"{part}/{name}": value for part, entries in parts.items() for name, value in entries.items()}
    write_state(path, state, {"kt_ray": json.dumps(facts)})


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the parts and facts that `save_checkpoint` wrote. Raises CheckpointError if `path` is something else."""
    tensors, metadata = read_written(path)
    try:
        facts = dict(json.loads(metadata["kt_ray"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is not a checkpoint of a distillation; remove it") from None
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts, facts


def load_part(module: nn.Module, parts: Mapping[str, Mapping[str, Tensor]], part: str, path: Path) -> None:
    """`parts[part]` into `module`. Raises CheckpointError if names or shapes differ."""
    try:
        module.load_state_dict(dict(parts.get(part, {})))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")
        raise CheckpointError(f"{path} holds another {part} than the configuration names: {reason[:200]}") from None
