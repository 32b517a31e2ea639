"""Translators: train, load, evaluate, translate, the public functions of `kt_ray` on them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from torch import Tensor, nn

from kt_ray._io.bundled import PREFIX
from kt_ray._io.display import Displayed, ProgressLine
from kt_ray._io.scratch import scratch_directory
from kt_ray.config import Split, TrialConfig, validate
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ConfigError
from kt_ray.jobs.device import use_device
from kt_ray.networks import State
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.state_file import write_state
from kt_ray.studies.workspace import Workspace
from kt_ray.studies.zoos import zoo_and_dataset
from kt_ray.tracking.registry import load_champion_path
from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.checkpoint import LoadedTranslator, load_translator
from kt_ray.translation.evaluation import Evaluation
from kt_ray.translation.evaluation import evaluate as evaluate_translator
from kt_ray.translation.figures import save_figures
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translate import Translation
from kt_ray.translation.translate import translate as translate_file
from kt_ray.translation.translate_sites import SitesTranslation
from kt_ray.zoo.members import AnyZoo, Zoo
from kt_ray.zoo.store import ZooStore


def train(
    zoo: ZooStore | AnyZoo | str,
    dataset: Dataset | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    **settings: Any,
) -> LoadedTranslator:
    """Train one translator on the training members of a zoo, in this process.

    Args:
        zoo: A zoo, or what `open_zoo` takes.
        dataset: The images that the zoo was trained on; those of `zoo.json` if None.
        seed: Of initial weights, order of members, augmentation and images.
        device: As torch names it.
        progress: Whether a line shows how far the training is, on terminals and in notebooks.
        **settings: The keys of `trial` in a study file: `translator`, `training`, `loss`, `augmentation`.

    Returns:
        The trained translator. Its `extra["history"]` is what every epoch reported: loss, and mean, min and max
        accuracy of selection members with translated blocks on selection images.

    Raises:
        ConfigError: If a setting is unknown or out of its range.
        ZooError: If the zoo has no training or selection member that can be used, or was trained on other images.
        ResourceError: If torch cannot compute on `device`.

    Example:
        >>> import kt_ray as kt
        >>> translator = kt.train(
        ...     "pretrained:mnist5k", translator={"family": "mlp"}, training={"epochs": 1, "steps_per_epoch": 2}
        ... )
        >>> len(translator.extra["history"])
        1
    """
    config = validate(TrialConfig, {"seed": seed, **settings}, "train")
    members, images = zoo_and_dataset(zoo, dataset)
    training = TranslatorTraining(config, members, images, use_device(device))
    history: list[dict[str, float]] = []
    with ProgressLine(progress) as line:
        while not training.finished:
            history.append(training.run_epoch())
            last = history[-1]
            text = f"epoch {training.epoch} of {config.training.epochs}: loss {last['loss']:.4f}"
            line.update(f"{text}, accuracy {last['accuracy_mean']:.4f}", last=training.finished)
    extra = {
        "trial": config.model_dump(mode="json"),
        "metrics": history[-1],
        "history": history,
        "zoo": members.fingerprint,
        "dataset": members.dataset_fingerprint,
    }
    return LoadedTranslator(training.translator.eval(), config.translator, members.architecture, extra)


def load(model: str | Path, workspace: str | Path | None = None) -> LoadedTranslator:
    """Load a trained translator.

    Args:
        model: A translator's file, the directory of `save_pretrained`, `pretrained:NAME` for one bundled with kt_ray,
            or `models:/NAME@champion` or `models:/NAME/VERSION` in MLflow's registry.
        workspace: Directory of the workspace with the registry; `KT_RAY_WORKSPACE`, else `./kt-workspace`, if None.

    Returns:
        The translator in evaluation mode.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
        TrackingError: If the registry has no such model.

    Example:
        >>> import kt_ray as kt
        >>> kt.load("pretrained:basic_to_simple").architecture.pair
        'basic_to_simple'
    """
    return load_translator(translator_file(str(model), workspace))


def evaluate(
    translator: LoadedTranslator | str | Path,
    zoo: ZooStore | AnyZoo | str,
    dataset: Dataset | None = None,
    *,
    split: Split = "selection",
    fit_steps: int = 0,
    device: str | None = None,
) -> Evaluation:
    """Measure the accuracy of a zoo's held-out networks with translated blocks, beside baselines.

    Args:
        translator: A translator, or what `load` takes.
        zoo: A zoo, or what `open_zoo` takes.
        dataset: The images that the zoo was trained on; those of `zoo.json` if None.
        split: Which members, on which images: `selection`, or `test` for a final table, once.
        fit_steps: Also fit a block to each member by so many optimiser steps, with and without data; 0 for none.
        device: As torch names it; the translator's if None.

    Returns:
        A table with a row for each kind of block: accuracies in [0, 1], the share of images on which a network predicts
        what it predicts with its source block, parameters, multiply-adds of the block for an image, seconds a member.

    Raises:
        CheckpointError: If the translator cannot serve the zoo's networks.
        ZooError: If the zoo has no member of `split`, or was trained on other images.
        ResourceError: If torch cannot compute on `device`.

    Example:
        >>> import kt_ray as kt
        >>> zoo = kt.open_zoo("pretrained:mnist5k")
        >>> translator = kt.train(zoo, translator={"family": "mlp"}, training={"epochs": 1, "steps_per_epoch": 2})
        >>> evaluation = kt.evaluate(translator, zoo)
        >>> 0 <= evaluation.row("translated").mean <= evaluation.row("source").max <= 1
        True
    """
    loaded = translator if isinstance(translator, LoadedTranslator) else load(translator)
    network = loaded.translator if device is None else copy.deepcopy(loaded.translator).to(use_device(device))
    members, images = zoo_and_dataset(zoo, dataset)
    if isinstance(members, Zoo):
        network = network.for_architecture(members.architecture)
    return evaluate_translator(network, members, images, members=split, images=split, fit_steps=fit_steps)


@dataclass(frozen=True, repr=False)
class TranslatedNetwork(Displayed):
    """A small network made of a large one: its named tensors, and what it costs and gives."""

    state: State
    report: Translation | SitesTranslation

    def save(self, path: str | Path) -> Path:
        """Write the tensors as a safetensors file.

        Args:
            path: Of the file; directories above it are made.

        Returns:
            The path.

        Raises:
            CheckpointError: If it cannot be written.
        """
        write_state(Path(path), self.state)
        return Path(path)

    def display_title(self) -> str:
        return self.report.display_title()

    def display_rows(self) -> list[dict[str, Any]]:
        return self.report.display_rows()


def translate(
    translator: LoadedTranslator | str | Path,
    network: nn.Module | Mapping[str, Tensor] | str | Path,
    *,
    dataset: Dataset | None = None,
    sites: Sequence[str] | None = None,
    device: str = "cpu",
) -> TranslatedNetwork:
    """Write the small network that a translator makes of a large one.

    Args:
        translator: A translator, or what `load` takes.
        network: A module, its `state_dict`, or the file of one (safetensors, or `.pth` that torch reads without running
            code). Names and shapes are those of the networks that the translator was trained for.
        dataset: Measures accuracy on its test images before and after, if given.
        sites: Of a registered network, module paths of the blocks to translate; all that its pair chooses if None.
        device: As torch names it; the small network's tensors are on the CPU.

    Returns:
        The named tensors of the whole small network, float32, and what they cost and give.

    Raises:
        CheckpointError: If the network does not fit the translator, holds NaN or infinity, or cannot be read.
        ResourceError: If torch cannot compute on `device`.

    Example:
        >>> import kt_ray as kt
        >>> zoo = kt.open_zoo("pretrained:mnist5k").read()
        >>> network = {name: value[0] for name, value in zoo.network().items()}  # the first of its trained networks
        >>> small = kt.translate("pretrained:basic_to_simple", network)
        >>> small.report.parameters_after < small.report.parameters_before
        True
        >>> sorted(small.state)[0], small.state["block.conv1.weight"].shape
        ('block.conv1.weight', torch.Size([3, 6, 3, 3]))
    """
    with scratch_directory() as folder:
        model, checkpoint, output = (folder / f"{name}.safetensors" for name in ("model", "network", "small"))
        if isinstance(translator, LoadedTranslator):
            translator.save(model)
        else:
            model = translator_file(str(translator), None)
        if isinstance(network, str | Path):
            checkpoint = Path(network)
        else:
            write_state(checkpoint, _state_of(network))
        report = translate_file(model, checkpoint, output, dataset, device=use_device(device), sites=sites)
        return TranslatedNetwork(read_state(output), report)


def translator_file(model: str, workspace: str | Path | None) -> Path:
    """Return the file of a translator: a path, `pretrained:NAME`, or a `models:/…` URI in the workspace's registry."""
    if model.startswith(PREFIX):
        return TRANSLATORS.path(model)
    if not model.startswith("models:/"):
        return Path(model)
    return load_champion_path(Workspace.existing(workspace).tracking_uri, model)


def make_output(directory: Path) -> None:
    """Make `directory` if it is missing. Raises ConfigError if no file can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None


def write_evaluation(evaluation: Evaluation, directory: Path) -> list[Path]:
    """Write `evaluation.json`, `evaluation.md` and figures into `directory`; return their paths. Raises ConfigError."""
    content = {"json": json.dumps(evaluation.to_dict(), indent=1), "md": evaluation.to_markdown()}
    try:
        for suffix, text in content.items():
            (directory / f"evaluation.{suffix}").write_text(text, encoding="utf-8")
        return [directory / f"evaluation.{suffix}" for suffix in content] + save_figures(evaluation, directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None


def _state_of(network: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"the network's {', '.join(others[:3])} is no tensor; give a module or its state_dict")
    return {str(name): value.detach().clone() for name, value in state.items()}
