"""Datasets, zoos and the code that they need: the public functions of `kt_ray` on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kt_ray import data
from kt_ray._io.bundled import PREFIX
from kt_ray._io.display import ProgressLine
from kt_ray._io.text import duration
from kt_ray.config import DatasetConfig, RayConfig, ZooConfig, validate
from kt_ray.config.code import hashes, read_code
from kt_ray.config.study_code import load_code as run_code
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.jobs.device import use_device
from kt_ray.studies.workspace import Workspace
from kt_ray.zoo.bundled import ZOOS
from kt_ray.zoo.members import AnyZoo
from kt_ray.zoo.store import ZooStore, zoo_names


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
    if name.startswith(PREFIX):
        return ZooStore(str(ZOOS.path(name)))
    if isinstance(zoo, Path) or "/" in name:
        store = ZooStore(name)
        if store.exists():
            return store
        raise ZooError(f"no zoo at {name}; `kt-ray zoo build STUDY.yaml` makes one")
    if ":" not in name and ZooStore(name).exists():
        return ZooStore(str(Path(name).absolute()))
    place = Workspace.existing(workspace)
    store = ZooStore(place.zoo(name))
    if not store.exists():
        known = ", ".join(zoo_names(place.root / "zoos")) or "none"
        raise ZooError(f"no zoo {name!r} in {place.root}; there are: {known}")
    return store


def zoo_and_dataset(zoo: ZooStore | AnyZoo | str, dataset: Dataset | None) -> tuple[AnyZoo, Dataset]:
    """Return the zoo in memory and the images that it was trained on. Raises ZooError if `dataset` has others."""
    if isinstance(zoo, AnyZoo):
        if dataset is None:
            raise ZooError("a zoo in memory does not know its images: give `dataset`, or the zoo of `open_zoo`")
        members = zoo
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
