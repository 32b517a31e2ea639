"""Training of one translator: batches of members, augmentation, translator, loss; selection after every epoch."""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kt_ray.config import TrainingConfig, TrialConfig
from kt_ray.config.trial import BASELINE_IMAGES
from kt_ray.data import Dataset, as_float
from kt_ray.errors import CheckpointError, ZooError
from kt_ray.networks import Architecture, State, stacked
from kt_ray.networks.state_file import read_written, write_state
from kt_ray.translation import augmentations
from kt_ray.translation.augmentations import Orientation
from kt_ray.translation.losses import TranslationLoss
from kt_ray.translation.optimizer import build_optimizer, learning_rate
from kt_ray.translation.prepared import Prepared, selection_of
from kt_ray.translation.translator import Translator, build_translator
from kt_ray.translation.transplants import Transplants, network_accuracies, translate, transplant_accuracy
from kt_ray.zoo.members import AnyZoo, SitesZoo

Result = TypeVar("Result")
FORMAT = "kt_ray.translation.training/1"


@dataclass(frozen=True)
class _Site:
    """What is trained and selected on at one site. `model` and `translator` share their parameters with all sites."""

    architecture: Architecture
    loss: TranslationLoss
    members: State
    transplants: Transplants
    model: Translator
    translator: Translator


class TranslatorTraining:
    """One translator in training, an epoch at a time. Of a zoo with several sites, each step is at the next one.

    All randomness of an epoch comes from generators seeded by the trial's seed and the epoch's number, so what is
    continued from a checkpoint gives the same numbers as what was never stopped.
    """

    def __init__(
        self,
        config: TrialConfig,
        zoo: AnyZoo,
        dataset: Dataset,
        device: str = "cpu",
        prepared: Prepared | None = None,
    ) -> None:
        self.config, self.device, self.zoo = config, device, zoo
        views = zoo.architecture.views()
        losses = [TranslationLoss(config.loss, view) for view in views]
        self.loss = losses[0]
        for view in views:
            augmentations.check_known(config.augmentation, view)
        members = zoo.where("train", with_target=self.loss.needs_targets or not config.augmentation.snapshots)
        if not len(members):
            raise ZooError(f"zoo {zoo.fingerprint} has no training member with what the loss needs; build more")
        selection = selection_of(zoo, dataset, device, prepared)
        self.images = dataset.train.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_translator(config.translator, zoo.architecture)
        if self.model.runs_network:
            images = dataset.train.images if prepared is None or prepared.mixture is None else prepared.mixture
            self.model.draw_probes(images, torch.Generator().manual_seed(_seed(config.seed, 0, 2)))
        self.model.to(device)
        self.translator = copy.deepcopy(self.model) if config.training.ema else self.model
        self.optimizer = build_optimizer(config.training, self.model)
        training = [view.parameters for view in members.to(device).views()]
        self.sites = [
            _Site(view, loss, rows, seen, self.model.for_architecture(view), self.translator.for_architecture(view))
            for view, loss, rows, seen in zip(views, losses, training, selection, strict=True)
        ]
        self.epoch = 0
        self.stale = 0
        self.best: dict[str, float] = {}  # with patience, the best report and the translator that it is of
        self.kept: State = {}

    @property
    def finished(self) -> bool:
        """True if every epoch is done, or patience has run out."""
        settings = self.config.training
        return self.epoch >= settings.epochs or (settings.patience is not None and self.stale >= settings.patience)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps between two reports."""
        count = sum(stacked.size(site.members) for site in self.sites)
        return self.config.training.steps_per_epoch or math.ceil(count / self.config.training.batch_size)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch; loss, accuracies on selection members and selection images, seconds, parameters.

        With patience, the last report and the translator are those of the best epoch.
        """
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else [self.device]):
            torch.manual_seed(_seed(self.config.seed, self.epoch))  # dropout
            loss = self._train(torch.Generator(self.device).manual_seed(_seed(self.config.seed, self.epoch, 1)))
        self.epoch += 1
        (accuracies, cost), of_networks = self._selected(), self._of_networks()
        metrics = {
            "loss": loss,
            "translation_cost": cost,
            "accuracy_mean": float(accuracies.mean()),
            "accuracy_min": float(accuracies.min()),
            "accuracy_max": float(accuracies.max()),
            "seconds": time.perf_counter() - started,
            "parameters": float(sum(parameter.numel() for parameter in self.model.parameters())),
            **of_networks,
        }
        return metrics if self.config.training.patience is None else self._best(metrics)

    def _best(self, metrics: dict[str, float]) -> dict[str, float]:
        """Keep the translator of `metrics` where they are the best so far; at the end, go back to the best."""
        improved = not self.best or metrics["accuracy_mean"] > self.best["accuracy_mean"]
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.best = metrics
            self.kept = {name: value.clone() for name, value in self.translator.state_dict().items()}
        if not self.finished:
            return metrics
        self.translator.load_state_dict(self.kept)
        return self.best | {"seconds": metrics["seconds"]}

    def _train(self, generator: torch.Generator) -> float:
        """The steps of one epoch; their mean loss."""
        settings, count = self.config.training, stacked.size(self.sites[0].members)
        steps, total = self.steps_per_epoch, torch.zeros((), device=self.device)
        orders = [torch.empty(0, dtype=torch.long, device=self.device) for _ in self.sites]
        for site in self.sites:
            site.model.train()
        for step in range(self.epoch * steps, (self.epoch + 1) * steps):
            place = step % len(self.sites)
            if len(orders[place]) < min(settings.batch_size, count):
                orders[place] = torch.randperm(count, generator=generator, device=self.device)
            rows, orders[place] = orders[place].tensor_split([settings.batch_size])
            total += self._step(self.sites[place], rows, generator, step, settings.epochs * steps)
        return float(total / steps)

    def _step(self, site: _Site, rows: Tensor, generator: torch.Generator, step: int, steps: int) -> Tensor:
        """One optimiser step on the members at `rows`; its loss."""
        settings: TrainingConfig = self.config.training
        augmentation = self.config.augmentation
        members = augmentations.augment(stacked.take(site.members, rows), augmentation, site.architecture, generator)
        source, target = augmentations.corrupt(members, augmentation, generator)
        orientation = Orientation.draw(augmentation, generator)
        copied = site.architecture.layouts()[1].copied_of(stacked.part(members, "source"))
        source |= copied | stacked.surroundings(members)
        translated = orientation.turn_back(site.model(orientation.turn(source)))
        images, labels = self._images(generator)
        loss = site.loss(translated, members, target, images, labels, step / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(settings, step, steps)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        if settings.ema:
            self._average(min(settings.ema, (step + 1) / (step + 10)))
        return loss.detach()

    def _average(self, decay: float) -> None:
        """Draw the averaged weights towards the present ones."""
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.translator.parameters()), list(self.model.parameters()), 0)

    def _images(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        """Training images and labels for this step, if the loss looks at any."""
        if not self.loss.needs_images:
            return None, None
        chosen = torch.randint(len(self.images), (self.config.loss.images,), generator=generator, device=self.device)
        return as_float(self.images.images[chosen]), self.images.labels[chosen]

    def select(self) -> Tensor:
        """Return the accuracy of each selection member with its translated block, at each site, on selection images."""
        return self._selected()[0]

    def _selected(self) -> tuple[Tensor, float]:
        """Return the accuracies of `select` and the time of translating a network over that of `BASELINE_IMAGES`
        images."""
        accuracies, cost = [], 0.0
        for site in self.sites:
            members = site.transplants.zoo
            blocks, translating = _timed(functools.partial(translate, site.translator, members), self.device)
            accuracies.append(site.transplants.accuracy(blocks))
            cost += translating
        members = self.sites[0].transplants.zoo
        images = self.sites[0].transplants.images.take(slice(0, BASELINE_IMAGES))
        source = members.part("source")
        _, running = _timed(lambda: transplant_accuracy(members, source, images), self.device)
        images_seen = len(images) / BASELINE_IMAGES  # fewer where fewer are selected on
        return torch.cat(accuracies), cost * images_seen / running

    def _of_networks(self) -> dict[str, float]:
        """Return the mean accuracy of selection networks with all blocks translated, where these are several."""
        if not isinstance(self.zoo, SitesZoo):
            return {}
        images = self.sites[0].transplants.images
        accuracies = network_accuracies(self.translator, self.zoo.where("selection"), images)
        return {"network_accuracy": float(accuracies.mean())}

    def save(self, path: Path) -> None:
        """Everything that training needs to continue, as one safetensors file."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.config.training.ema:
            tensors |= {f"average.{name}": value for name, value in self.translator.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.kept.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        metadata = {"format": FORMAT, "config": self.config.model_dump_json(), "state": json.dumps(self._state())}
        write_state(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote. Raises CheckpointError if that is damaged or of another trial."""
        # Adam's step count stays on the CPU: on a device, each step would read it back
        tensors, metadata = read_written(path)
        if metadata.get("format") != FORMAT or not self._of_this_trial(metadata.get("config", "")):
            raise CheckpointError(f"{path} belongs to another trial; expected the one of seed {self.config.seed}")
        self.model.load_state_dict(stacked.part(tensors, "model"))
        if self.config.training.ema:
            self.translator.load_state_dict(stacked.part(tensors, "average"))
        self.kept = stacked.to(stacked.part(tensors, "best"), self.device)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        given = json.loads(metadata["state"])
        for name in self._state():
            setattr(self, name, given[name])

    def _of_this_trial(self, config: str) -> bool:
        """Return whether `config`, a checkpoint's, is this trial's; options that it lacks have their defaults."""
        try:
            return TrialConfig.model_validate_json(config) == self.config
        except ValidationError:
            return False

    def _state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "best": self.best, "stale": self.stale}


def _timed(call: Callable[[], Result], device: str) -> tuple[Result, float]:
    """Return what `call` returns and its seconds: of this process alone on a CPU, of the clock on a device."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize(device)
    started = clock()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return result, clock() - started


def _seed(*parts: int) -> int:
    """A 63-bit seed from small integers, another for each combination."""
    seed = 0
    for part in parts:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return seed
