"""Finding what a workspace holds: zoos, translators, studies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from kt_ray._io.bundled import PREFIX
from kt_ray._io.checksum import checked_json
from kt_ray.config import DatasetConfig, Split, StudyConfig, validate
from kt_ray.config.study import Choice
from kt_ray.errors import ConfigError, StudyError, ZooError
from kt_ray.studies.workspace import Workspace, reading
from kt_ray.translation.bundled import TRANSLATORS
from kt_ray.translation.evaluation import Evaluation, evaluate
from kt_ray.zoo.bundled import ZOOS
from kt_ray.zoo.store import ZooStore, zoo_names

if TYPE_CHECKING:
    from kt_ray.tracking.registry import RegisteredTranslator


def open_workspace(config: StudyConfig, root: Path | None) -> Workspace:
    """The workspace at `root` with the storages that the study file names."""
    return Workspace.open(root, config.storage)


def started_from(config: StudyConfig, workspace: Workspace, sources: Sequence[str]) -> StudyConfig:
    """`config` with what `sources` found as the first points to try, as far as its space has their parameters.

    A source is a study of the same storage, `models:/NAME@champion`, a translator's file, or `pretrained:NAME`. Raises
    StudyError where it has nothing for this space, TrackingError and CheckpointError where a translator cannot be read.
    """
    from kt_ray.studies.warm_start import point_of_translator, points_of_study
    from kt_ray.tracking.registry import load_champion_path

    points: list[dict[str, Choice]] = []
    for source in sources:
        if source == config.name:
            raise StudyError(f"the study {source} cannot start from itself; `kt-ray resume {source}` goes on with it")
        if source.startswith(PREFIX):
            points.append(point_of_translator(TRANSLATORS.path(source), config.space))
        elif "/" in source or source.endswith(".safetensors"):
            points.append(point_of_translator(load_champion_path(workspace.tracking_uri, source), config.space))
        else:
            points += points_of_study(workspace.study_storage, source, config.space)
    return config.model_copy(
        update={"search": config.search.model_copy(update={"points": (*points, *config.search.points)})}
    )


def open_zoo(name: str, root: Path | None) -> ZooStore:
    """The zoo called `name` in the workspace, one that ships, or that at the directory or URI `name`.

    One that ships is written `pretrained:NAME`. Raises ZooError if there is none.
    """
    if name.startswith(PREFIX):
        return ZooStore(str(ZOOS.path(name)))
    if "/" in name:
        store = ZooStore(name)
        if store.exists():
            return store
        raise ZooError(f"no zoo at {name}; `kt-ray zoo build STUDY.yaml` makes one")
    workspace = Workspace.existing(root)
    store = ZooStore(workspace.zoo(name))
    if not store.exists():
        folder = workspace.root / "zoos"
        known = zoo_names(folder)
        raise ZooError(f"no zoo {name!r} in {workspace.root}; there are: {', '.join(known) or 'none'}")
    return store


def translator_file(model: str, root: Path | None) -> Path:
    """The translator at `model`: a file, `pretrained:NAME`, or a `models:/…` URI in the workspace's registry."""
    if model.startswith(PREFIX):
        return TRANSLATORS.path(model)
    if not model.startswith("models:/"):
        return Path(model)
    from kt_ray.tracking.registry import load_champion_path

    return load_champion_path(Workspace.existing(root).tracking_uri, model)


def registered(root: Path | None, name: str) -> list[RegisteredTranslator]:
    """The versions of the registered model `name`."""
    from kt_ray.tracking.registry import champions

    return champions(Workspace.existing(root).tracking_uri, name)


def evaluate_model(
    model: str, zoo_name: str, root: Path | None, *, final: bool = False, fit_steps: int = 0
) -> Evaluation:
    """Transplant what `model` translates into members of the zoo: selection ones on selection images, or test ones.

    With `fit_steps` also blocks fitted to each member by so many steps. The dataset is the zoo's own. Raises ZooError
    where its fingerprint is not that of the zoo's training, CheckpointError where `model` cannot serve its networks.
    """
    from kt_ray.data import load_dataset
    from kt_ray.translation.checkpoint import load_translator

    store = open_zoo(zoo_name, root)
    loaded = load_translator(translator_file(model, root))
    zoo = store.read()
    translator = loaded.translator.for_architecture(zoo.architecture)
    dataset = load_dataset(validate(DatasetConfig, store.definition()["dataset"]))
    if dataset.fingerprint != zoo.dataset_fingerprint:
        raise ZooError(
            f"the zoo {zoo_name} was trained on images with fingerprint {zoo.dataset_fingerprint}, "
            f"{dataset.name} here has {dataset.fingerprint}; point KT_RAY_DATA at the same data"
        )
    split: Split = "test" if final else "selection"
    return evaluate(translator, zoo, dataset, members=split, images=split, fit_steps=fit_steps)


def make_output(directory: Path) -> None:
    """Make `directory` where it is missing. Raises ConfigError where no file can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None


def write_evaluation(evaluation: Evaluation, directory: Path) -> list[Path]:
    """The evaluation as `evaluation.json`, `evaluation.md` and figures in `directory`; returns their paths."""
    from kt_ray.translation.figures import save_figures

    content = {"json": json.dumps(evaluation.to_dict(), indent=1), "md": evaluation.to_markdown()}
    try:
        for suffix, text in content.items():
            (directory / f"evaluation.{suffix}").write_text(text, encoding="utf-8")
        return [directory / f"evaluation.{suffix}" for suffix in content] + save_figures(evaluation, directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}; name another --output") from None


def study_report(workspace: Workspace, study: str, output: Path | None = None) -> Path:
    """The report of a study as one HTML page at `output`, else in the study's directory; returns where it lies.

    Raises StudyError where there is no such study, ConfigError where the page cannot be written.
    """
    from kt_ray.search.summary import load_study, summarise
    from kt_ray.studies.conclusion import read_conclusion
    from kt_ray.tracking.report import write_report

    found = load_study(workspace.study_storage, study)
    conclusion = read_conclusion(workspace, study)
    evaluation = conclusion.evaluation if conclusion is not None else None
    facts = {name: value for name, value in summarise(found).row().items() if value is not None}
    path = output or workspace.study_directory(study) / "report.html"
    try:
        return write_report(path, found, evaluation, facts)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; name another --output") from None


def study_config(study: str, root: Path | None) -> StudyConfig:
    """The study file, as resolved, that the workspace's study `study` was last run with.

    Raises StudyError where the workspace has no such study, or a damaged file of it.
    """
    workspace = Workspace.existing(root)
    path = workspace.study_directory(study) / "study.json"
    if not path.is_file():
        folder = workspace.root / "studies"
        known = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise StudyError(f"no study {study!r} in {workspace.root}; there are: {', '.join(known) or 'none'}")
    with reading(path):
        content = checked_json(path.read_bytes())
    return validate(StudyConfig, content, str(path))
