"""The public functions of `kt_ray` on datasets, zoos and translators; those on studies are in `studies/study`.

Everything here is thin: settings are checked by the models of `kt_ray.config`, work is done in the other rooms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kt_ray import data
from kt_ray._io.display import Displayed, ProgressLine
from kt_ray._io.scratch import scratch_directory
from kt_ray._io.text import duration
from kt_ray.config import DatasetConfig, RayConfig, Split, TrialConfig, ZooConfig, validate
from kt_ray.config.code import hashes, read_code
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ZooError
from kt_ray.jobs.device import use_device
from kt_ray.networks import State
from kt_ray.networks.checkpoint import read_state
from kt_ray.networks.state_file import write_state
from kt_ray.studies import zoos
from kt_ray.studies.models import translator_file
from kt_ray.study_code import load_code as run_code
from kt_ray.translation.checkpoint import LoadedTranslator, load_translator
from kt_ray.translation.evaluation import Evaluation
from kt_ray.translation.evaluation import evaluate as evaluate_translator
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.translate import Translation
from kt_ray.translation.translate import translate as translate_file
from kt_ray.translation.translate_sites import SitesTranslation
from kt_ray.zoo.members import AnyZoo, Zoo
from kt_ray.zoo.store import ZooStore

Settings = Mapping[str, Any]


def load_dataset(name: str = "mnist5k", **options: Any) -> Dataset:
    """Load a dataset as tensors, with its training images split into training and selection images by a fixed seed.

    Images are uint8 [N, C, H, W], labels int64 [N]. `mnist5k` (5,000 digits) needs no download; other datasets are read
    from, or downloaded to, the directory in `KT_RAY_DATA`.

    Args:
        name: As in the `dataset` of a study file: `mnist5k`, `mnist`, `fashion_mnist`, `cifar10`, `cifar100`.
        **options: The other keys of `dataset` in a study file: `selection_images` (500 unless set), `train_images`.

    Returns:
        The dataset; its `train`, `selection` and `test` hold `images` and `labels`.

    Raises:
        ConfigError: If the name or an option is unknown.
        DataError: If the dataset is neither found nor downloaded.

    Example:
        >>> import kt_ray as kt
        >>> dataset = kt.load_dataset("mnist5k", selection_images=200, train_images=1000)
        >>> dataset.train.images.shape
        torch.Size([1000, 1, 28, 28])
        >>> len(dataset.selection), len(dataset.test), dataset.classes
        (200, 1000, 10)
    """
    return data.load_dataset(validate(DatasetConfig, {"name": name, **options}, "load_dataset"))


def build_zoo(
    path: str | Path,
    dataset: Dataset | str = "mnist5k",
    *,
    pair: str | dict[str, Any] = "basic_to_simple",
    ray: bool | str = False,
    device: str = "cpu",
    progress: bool = True,
    **settings: Any,
) -> ZooStore:
    """Train the networks that a zoo is missing and store them.

    A network's id and the zoo's seed decide its parameters: building again, or with more members, trains only what is
    missing.

    Args:
        path: Directory or `pyarrow.fs` URI of the zoo.
        dataset: What the networks are trained on.
        pair: The block pair: which block the networks have, and which small block is trained in its place.
        ray: False trains in this process; True uses the Ray session of this process or starts one for the call; a
            string is the address of a Ray cluster.
        device: As torch names it, for training in this process; with Ray, `actors={"gpus": 0.5}` asks for GPUs.
        progress: Whether a line shows how far the build is, on terminals and in notebooks.
        **settings: The keys of `zoo` in a study file: `members`, `recipe`, `network`, `seed`, `actors`.

    Returns:
        The zoo on disk. `info()` describes it, `read()` loads it.

    Raises:
        ConfigError: If a setting is unknown or out of its range.
        ZooError: If another zoo is stored there, or it cannot be written.
        ResourceError: If Ray cannot be reached, no node can train a member, or torch cannot compute on `device`.

    Example:
        >>> import kt_ray as kt
        >>> dataset = kt.load_dataset("mnist5k", train_images=256, selection_images=64)
        >>> brief = {"epochs": 1, "steps": 2}
        >>> zoo = kt.build_zoo(
        ...     "zoo", dataset, recipe={"source": brief, "target": brief},
        ...     members={"train": 2, "selection": 1, "test": 1},
        ... )
        >>> zoo.info().members == {"train": 2, "selection": 1, "test": 1}
        True
    """
    config = validate(ZooConfig, dict(settings), "build_zoo")
    images = load_dataset(dataset) if isinstance(dataset, str) else dataset
    store = ZooStore(str(path))
    with ProgressLine(progress) as line:

        def show(state: Any) -> None:
            done = f"zoo: {state.done} of {state.members} networks, {state.members_per_hour:,.0f} an hour"
            line.update(f"{done}, {duration(state.eta_seconds)} to go", last=state.done == state.members)

        if ray is False:
            from kt_ray.zoo.local import build_zoo_locally

            build_zoo_locally(config, pair, images, store, show, use_device(device))  # type: ignore[arg-type]
        else:
            from kt_ray.jobs.connection import connected
            from kt_ray.zoo.actors import build_zoo as build_with_actors

            with connected(RayConfig(address=ray if isinstance(ray, str) else None)):
                build_with_actors(config, pair, images, store, show)  # type: ignore[arg-type]
    return store


def load_code(*files: str | Path) -> dict[str, str]:
    """Run Python files that register networks, pairs and so on, as those under `code` of a study file do.

    What a study registered can be opened, evaluated and translated afterwards: zoos and translators name the files that
    they need, by their SHA-256, and never run any.

    Args:
        *files: Each is run once a process; other text under the same name takes the place of the earlier.

    Returns:
        The SHA-256 of each file by its name, as zoos and translators name what they need.

    Raises:
        ConfigError: If a file cannot be read, raises, registers nothing, or registers a name that is taken.

    Example:
        >>> import kt_ray as kt
        >>> from pathlib import Path
        >>> _ = Path("mine.py").write_text("from kt_ray import register\\nregister.loss('half')(lambda options: 0.5)")
        >>> list(kt.load_code("mine.py"))
        ['mine.py']
        >>> kt.register.loss.make("half")
        0.5
    """
    paths = [Path(file) for file in files]
    found = [file for path in paths for file in read_code([path.name], path.parent)]
    run_code(found)
    return hashes(found)


def open_zoo(zoo: str | Path, workspace: str | Path | None = None) -> ZooStore:
    """Open a zoo that is stored.

    Args:
        zoo: Name of a zoo in the workspace, a directory, a URI, or `pretrained:NAME` for one bundled with kt_ray.
        workspace: Directory of the workspace; `KT_RAY_WORKSPACE`, else `./kt-workspace`, if None.

    Returns:
        The zoo on disk. `info()` describes it, `read()` loads it, `verify()` checks every file.

    Raises:
        ZooError: If there is none.

    Example:
        >>> import kt_ray as kt
        >>> kt.open_zoo("pretrained:mnist5k").info().dataset
        'mnist5k'
    """
    name = str(zoo)
    if isinstance(zoo, Path) or ("/" not in name and ":" not in name and ZooStore(name).exists()):
        name = str(Path(name).absolute())
    return zoos.open_zoo(name, None if workspace is None else Path(workspace))


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
    members, images = _zoo_and_dataset(zoo, dataset)
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
    return load_translator(translator_file(str(model), None if workspace is None else Path(workspace)))


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
    members, images = _zoo_and_dataset(zoo, dataset)
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


def _state_of(network: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"the network's {', '.join(others[:3])} is no tensor; give a module or its state_dict")
    return {str(name): value.detach().clone() for name, value in state.items()}


def _zoo_and_dataset(zoo: ZooStore | AnyZoo | str, dataset: Dataset | None) -> tuple[AnyZoo, Dataset]:
    """The zoo in memory, and the images it was trained on."""
    if isinstance(zoo, AnyZoo):
        members = zoo
        if dataset is None:
            raise ZooError("a zoo in memory does not know its images: give `dataset`, or the zoo of `open_zoo`")
    else:
        store = open_zoo(zoo) if isinstance(zoo, str) else zoo
        members = store.read()
        if dataset is None:
            dataset = data.load_dataset(validate(DatasetConfig, store.definition()["dataset"], store.uri))
    if dataset.fingerprint != members.dataset_fingerprint:
        raise ZooError(
            f"the zoo was trained on images with fingerprint {members.dataset_fingerprint}, {dataset.name} has "
            f"{dataset.fingerprint}; give the dataset that it was built with, or point KT_RAY_DATA at the same data"
        )
    return members, dataset
