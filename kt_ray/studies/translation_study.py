"""Studies of translators: a zoo is built, trials train translators over it, the best one meets the test members."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kt_ray.config import MemberCounts, StudyConfig
from kt_ray.config.code import CodeFile
from kt_ray.config.study_code import load_code
from kt_ray.data import Dataset, load_dataset
from kt_ray.errors import ConfigError, ZooError
from kt_ray.jobs.connection import connected
from kt_ray.jobs.remote import Report, run_remotely
from kt_ray.networks import architecture_of
from kt_ray.networks.cost import parameter_count
from kt_ray.search.space import value_at
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.doubts import doubts
from kt_ray.studies.study_task import Demand, Result, StudyTask
from kt_ray.studies.workspace import Workspace, open_tracker
from kt_ray.tracking.promotion import Measured
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.translation.checkpoint import FILE, load_translator
from kt_ray.translation.evaluation import Evaluation, evaluate, free_accuracies
from kt_ray.translation.figures import figures
from kt_ray.translation.task import TranslatorTask
from kt_ray.translation.training import TranslatorTraining
from kt_ray.zoo.actors import build_zoo
from kt_ray.zoo.store import ZooStore
from kt_ray.zoo.untrained import untrained_zoo

if TYPE_CHECKING:
    from kt_ray.distillation.distill import Distillation
    from kt_ray.studies.conclusion import Conclusion
    from kt_ray.translation.checkpoint import LoadedTranslator
    from kt_ray.zoo.members import AnyZoo
    from kt_ray.zoo.progress import BuildProgress

TRAINED = ("source", "trained target")
ONLY_SEVERAL_SITES = {"network_accuracy"}
PROBE_MEMBERS = MemberCounts(train=4, selection=2, test=1)


@dataclass
class TranslationStudy(StudyTask):
    """A study whose trials train translators over a zoo."""

    makes = "translator"
    selected_on = "members and images"

    config: StudyConfig
    zoo: AnyZoo = field(init=False)

    @property
    def store(self) -> ZooStore:
        return ZooStore(self.workspace.zoo(self.config.zoo.name))

    @property
    def demands(self) -> Mapping[str, Demand]:
        actors = self.config.zoo.actors
        return {"zoo actors": Demand(actors.demand, actors.label_selector, actors.count), **super().demands}

    def try_batch(self, dataset: Dataset) -> tuple[int, float]:
        config = self.config
        architecture = architecture_of(config.pair, config.zoo.network, dataset.image_shape, dataset.classes)
        one_batch = config.trial.training.model_copy(update={"epochs": 1, "steps_per_epoch": 1})
        trial = config.trial.model_copy(update={"training": one_batch})
        training = TranslatorTraining(trial, untrained_zoo(architecture, PROBE_MEMBERS), dataset)
        metrics = training.run_epoch()
        search = config.search
        wanted = {one.metric for one in search.objectives} | {one.metric for one in search.constraints}
        missing = wanted & ONLY_SEVERAL_SITES - metrics.keys()
        if missing:
            raise ConfigError(
                f"search: {missing.pop()} is of networks with blocks at several sites, this study's has one; choose "
                "accuracy_mean"
            )
        return parameter_count(training.translator), metrics["loss"]

    def unchanged(self) -> bool:
        try:
            return not self.store.missing(self.config.zoo)
        except ZooError:  # damaged: building it mends it
            return False

    def places(self, conclusion: Conclusion) -> Mapping[str, str]:
        return {"zoo": self.workspace.zoo(self.config.zoo.name)}

    def begin(self, dataset: Dataset, tracker: Tracker, console: StudyConsole) -> str:
        super().begin(dataset, tracker, console)
        zoo, trials = self.config.zoo.name, self.config.search.trials
        return f"{self.config.pair} on {dataset.name}, zoo {zoo}, {trials} trials"

    def prepare(self, build: bool) -> TranslatorTask:
        if build:
            self.zoo = _build(self.config, self.workspace, self.dataset, self.tracker, self.console)
        else:
            store, zoo = self.store, self.config.zoo
            if missing := len(store.missing(zoo)):
                raise ZooError(
                    f"zoo {zoo.name} is missing {missing} members; `kt-ray zoo build` or `kt-ray run` trains them"
                )
            store.create(zoo, self.config.pair, self.dataset)
            self.zoo = store.read()
        return TranslatorTask(self.zoo, self.dataset, mixture=draws_mixture(self.config))

    @property
    def fingerprint(self) -> str:
        return self.zoo.fingerprint

    @property
    def shared(self) -> Input:
        name = self.config.zoo.name
        return Input(name, self.zoo.fingerprint, self.workspace.zoo(name))

    def measure(self, file: Path, previous: Evaluation | Distillation | None) -> Result:
        loaded = load_translator(file)
        zoo, dataset, translator = self.zoo, self.dataset, loaded.translator
        found = previous if isinstance(previous, Evaluation) else self._evaluate(file)
        translated, tested = found.row("translated"), zoo.where("test").views()[0]
        return Result(
            evaluation=found,
            measured=Measured(
                on="zoo",
                fingerprint=zoo.fingerprint,
                protocol=f"{len(zoo.where('selection'))} selection members, {len(dataset.selection)} selection images, "
                f"{dataset.fingerprint}",
                selection=selection_accuracy(loaded, zoo),
                test=translated.mean,
                free=free_accuracies(zoo, dataset),
            ),
            module=translator,
            example={name: value[:2] for name, value in translator.read(tested.parameters).items()},
            card=model_card(self.config, found.to_markdown()),
            metrics={"test_mean": translated.mean, "test_min": translated.min, "test_max": translated.max},
            figures=figures(found),
            trained={f"{row.name} blocks": row.mean for row in found.rows if row.name in TRAINED},
        )

    def _evaluate(self, file: Path) -> Evaluation:
        """Evaluate the translator in `file` on the test members: with `gpus` where a trial would run, else here."""
        if not self.config.search.resources.gpus:
            return evaluate(load_translator(file).translator, self.zoo, self.dataset)
        demand = self.demands["trials"]
        with connected(self.config.ray):
            demand.fitting()
            given = file.read_bytes(), self.config.code, self.zoo, self.dataset
            return run_remotely(_evaluate_on, demand.amounts, demand.labels, lambda _: None, *given)


def _evaluate_on(
    device: str, report: Report, content: bytes, code: Sequence[CodeFile], zoo: AnyZoo, dataset: Dataset
) -> Evaluation:
    load_code(code)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        file.write_bytes(content)
        return evaluate(load_translator(file).translator.to(device), zoo, dataset)


def draws_mixture(config: StudyConfig) -> bool:
    """Return whether a trial of the study may draw probes from a mixture of training images."""

    def possible(path: str) -> tuple[object, ...]:
        if path not in config.space:
            return (value_at(config.trial, path),)
        distribution = config.space[path]
        return distribution.categorical or distribution.int_range or ()

    projects = "projected" in possible("translator.base")
    refines = any(possible("translator.refinement.steps"))
    return (projects and "mixture" in possible("translator.projection.images")) or (
        refines and "mixture" in possible("translator.refinement.images")
    )


def selection_accuracy(loaded: LoadedTranslator, zoo: AnyZoo) -> float | None:
    """Return the mean accuracy that the trial reported of these weights; None if that was on another zoo."""
    if loaded.extra.get("zoo") != zoo.fingerprint:
        return None
    accuracy: float | None = loaded.extra.get("metrics", {}).get("accuracy_mean")
    return accuracy


def model_card(config: StudyConfig, table: str) -> str:
    """Return what a registered translator is for, from what it was made, how well it did. Markdown."""
    counts = config.zoo.members
    return (
        f"# {config.model_name}: translator for {config.pair}\n\n"
        f"Reads the parameters of a trained source block and writes those of the target block (arXiv 2401.05772).\n\n"
        f"Found by the study `{config.name}` over the zoo `{config.zoo.name}`: {counts.train} training, "
        f"{counts.selection} selection and {counts.test} test members trained on {config.dataset.name}. "
        "Selected, as champion too, on selection members and selection images; the table below is on test members and "
        "test images.\n\n"
        f"{table}\n"
        "It translates blocks of networks trained like these members; others were not measured.\n"
    )


def build_zoo_of(config: StudyConfig, workspace: Workspace, console: StudyConsole) -> AnyZoo:
    """Train the missing members of the zoo of `config`."""
    dataset = load_dataset(config.dataset)
    with connected(config.ray):
        return _build(config, workspace, dataset, open_tracker(config, workspace), console)


def _build(
    config: StudyConfig, workspace: Workspace, dataset: Dataset, tracker: Tracker, console: StudyConsole
) -> AnyZoo:
    """Train the zoo's missing members on the Ray cluster that is connected, with an MLflow run of its own."""
    store = ZooStore(workspace.zoo(config.zoo.name))
    lacking = store.prepare(config.zoo, config.pair, dataset)
    run_id = None
    if lacking:
        console.say(f"zoo {config.zoo.name}: training {len(lacking)} members into {store.uri}")
        params = {"members": sum(config.zoo.members.model_dump().values()), **config.zoo.recipe.model_dump(mode="json")}
        run_id = tracker.zoo_run(config.zoo.name, dataset.fingerprint, params, {"kt_ray.pair": str(config.pair)})
        tracker.log_inputs(run_id, [Input(dataset.name, dataset.fingerprint, dataset.name)])

    def on_progress(progress: BuildProgress) -> None:
        console.building(progress)
        if run_id is not None:
            metrics = {"members": progress.done, "members_per_hour": progress.members_per_hour}
            if progress.mean_accuracy is not None:
                metrics["source_accuracy"] = progress.mean_accuracy
            tracker.log(run_id, metrics, progress.done)

    with tracker.ending(run_id):
        zoo = build_zoo(config.zoo, config.pair, dataset, store, on_progress)
    console.settle()
    if run_id is not None:
        tracker.finish(run_id, "FINISHED", {"kt_ray.zoo_fingerprint": zoo.fingerprint})
        info = store.info()
        means = {"sources": info.source_accuracy, "targets": info.target_accuracy}
        console.say(
            f"zoo {config.zoo.name}: {sum(info.members.values())} members, {info.bytes / 1e6:.1f} MB, mean accuracy of "
            f"sources {info.source_accuracy:.4f}, of targets {info.target_accuracy:.4f}"
        )
        for doubt in doubts(
            {name: mean for name, mean in means.items() if mean is not None}, dataset.classes, None, 0.0
        ):
            console.say(f"look: {doubt}")
    return zoo
