"""`kt-ray distill`: teacher → paraphraser → student, or a search over students; one look at the test images; MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kt_ray._io.checksum import checked_json, json_with_checksum
from kt_ray._io.files import write_whole
from kt_ray.config import DistillConfig, read_source, validate, validate_source
from kt_ray.data import Dataset, load_dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import Distillation, conclude, distill, load_student
from kt_ray.distillation.probe import try_batch
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.task import StudentTask, choices, prepare
from kt_ray.errors import ConfigError, StudyError
from kt_ray.jobs.connection import connected, fitting
from kt_ray.networks import State
from kt_ray.search.runner import run_search
from kt_ray.search.space import size
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.studies.console import Narrator
from kt_ray.studies.pipeline import open_tracker
from kt_ray.studies.resuming import Extension, resume_command
from kt_ray.studies.validation import Validation, search_problems
from kt_ray.studies.workspace import Workspace, reading
from kt_ray.tracking.promotion import Candidate, Measured, register_champion
from kt_ray.tracking.runs import STUDY_ID, Input
from kt_ray.tracking.tracker import Tracker

CONCLUSION = "distillation.json"
FILE = "distill.json"  # the distillation file as resolved, in the study's directory


def read_distillation(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """The distillation file at `path`, its space checked against its base. Raises ConfigError with all faults."""
    source = read_source(path, overrides)
    config = validate_source(DistillConfig, source)
    faults = search_problems(config)
    if faults:
        raise source.error(faults)
    return config


def validate_distillation(path: Path, overrides: Sequence[str] = (), *, here: bool = True) -> Validation:
    """Check the distillation file at `path`, every listed choice of it, and train one batch; nothing is kept.

    `here`, a search is fitted to its Ray cluster too. Raises ConfigError with every fault of the file, CheckpointError
    for the teacher's, ResourceError where no node can hold a trial.
    """
    config = read_distillation(path, overrides)
    concurrency = None
    if here and config.space:
        resources = config.search.resources
        with connected(config.ray):
            fit = fitting({"CPU": resources.cpus, "GPU": resources.gpus, **resources.resources})
        concurrency = min(config.search.concurrency or fit, fit)
    stages = Stages(Cache(Path()), load_dataset(config.dataset))
    for trial in choices(config):
        stages.check(trial)
    start = time.perf_counter()
    metrics = try_batch(stages, config.trial)
    return Validation(
        file=str(path),
        name=config.name,
        makes="student",
        size=size(config.space, config.trial),
        trials=config.search.trials if config.space else 0,
        concurrency=concurrency,
        zoo_actors=None,
        parameters=int(metrics["parameters"]),
        loss=metrics["loss"],
        seconds=time.perf_counter() - start,
    )


def is_distilled(study: str, root: Path | None) -> bool:
    """Whether the workspace's study `study` is one of `kt-ray distill`."""
    return (Workspace.existing(root).study_directory(study) / FILE).is_file()


def resume(
    study: str,
    root: Path | None,
    narrator: Narrator,
    extension: Extension,
    *,
    accept_changes: bool = False,
    accept_weak: bool = False,
) -> Distillation | None:
    """Go on with a distillation as it was last run, but for what `extension` asks for.

    `accept_weak` changes nothing: there is no student that costs nothing.

    Raises ConfigError where it names points to start from: only studies of translators start from others; StudyError
    where the file it was run with is damaged.
    """
    if extension.start_from:
        raise ConfigError(
            f"--from {extension.start_from[0]}: a distillation starts from the points in its `search.points` alone"
        )
    path = Workspace.existing(root).study_directory(study) / FILE
    with reading(path):
        content = checked_json(path.read_bytes())
    config = validate(DistillConfig, content, study)
    config = config.model_copy(update={"search": extension.extended(config.search)})
    return run(config, Workspace.open(root, config.storage), narrator, accept_changes=accept_changes)


def run(
    config: DistillConfig, workspace: Workspace, narrator: Narrator, *, accept_changes: bool = False
) -> Distillation | None:
    """Bring the distillation to its end; does only what is still lacking.

    `accept_changes` lets a search go on whose dataset, teacher or base trial are not those of its trials.
    Returns None where a search was stopped before its end. Raises the KTError of the stage that cannot go on.
    """
    dataset = load_dataset(config.dataset)
    directory = workspace.study_directory(config.name)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / FILE, config.model_dump_json(indent=1).encode())
    tracker = open_tracker(config, workspace)
    params = {"method": config.method.name, "dataset": dataset.name}
    run_id = tracker.study_run(config.name, params, _identity(config, workspace))
    tracker.log_inputs(run_id, [Input(dataset.name, dataset.fingerprint, dataset.name)])

    def report(progress: Progress) -> None:
        narrator.fitting(progress)
        stage = progress.stage.replace(" ", "_")
        tracker.log(run_id, {f"{stage}.{name}": value for name, value in progress.metrics.items()}, progress.epoch)

    # Every node of a cluster sees the checkpoints' directory; teachers and paraphrasers are shared between studies.
    gpu = config.search.resources.gpus if config.space else torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    stages = Stages(Cache(Path(workspace.checkpoints("distillation"))), dataset, device, report)
    try:
        made = (
            _searched(config, workspace, stages, tracker, narrator, accept_changes)
            if config.space
            else _straight(config, workspace, stages)
        )
    except BaseException as error:
        tracker.finish(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    if made is None:
        return None
    narrator.settle()
    distillation, trial = made
    comparison = _register(config, tracker, run_id, dataset, distillation, trial)
    tracker.log_text(run_id, distillation.to_markdown(), "evaluation.md")
    tracker.log(run_id, {"test_accuracy": distillation.rows[-1].accuracy}, 1)
    tracker.finish(run_id, "FINISHED")
    write_whole(directory / CONCLUSION, json_with_checksum(distillation.to_dict()))
    narrator.say(distillation.to_markdown())
    narrator.say(f"student:  {distillation.student}")
    narrator.say(f"registry: {comparison}")
    narrator.say(f"MLflow:   {tracker.run_url(run_id)}")
    return distillation


def _identity(config: DistillConfig, workspace: Workspace) -> dict[str, str]:
    """The tag that tells a search over students from another of its name; none where nothing is searched."""
    if not config.space:
        return {}
    return {STUDY_ID: SearchStudy(config, open_storage(workspace.study_storage)).identity}


def _straight(config: DistillConfig, workspace: Workspace, stages: Stages) -> tuple[Distillation, int]:
    directory = workspace.study_directory(config.name)
    return distill(config.trial, stages.cache.directory, directory, stages.dataset, stages.report, stages.device), 0


def _searched(
    config: DistillConfig,
    workspace: Workspace,
    stages: Stages,
    tracker: Tracker,
    narrator: Narrator,
    accept_changes: bool,
) -> tuple[Distillation, int] | None:
    task = StudentTask(prepare(config, stages), stages.dataset)
    narrator.settle()
    narrator.say(f"search: up to {config.search.trials} students over {len(config.space)} paths")
    with connected(config.ray):
        result = run_search(config, workspace, task, tracker, narrator.searching, accept_changes=accept_changes)
    narrator.settle()
    if result.stopped is not None:
        narrator.say(f"stopped by {result.stopped}; nothing is lost\nresume: {resume_command(config, workspace)}")
        return None
    if result.best_trial is None or result.translator is None:
        raise StudyError(f"no trial of {config.name} was complete; `kt-ray trials {config.name}` says why")
    best = load_student(result.translator)
    made = conclude(stages, best.config, best.network, best.facts, result.translator)
    return made, result.best_trial


class Classifier(nn.Module):
    """A student as the registry takes models: `images` [N, C, H, W] in [0, 1] → `logits` [N, classes]."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, state: State) -> State:
        logits: Tensor = self.student(state["images"])
        return {"logits": logits}


def _register(
    config: DistillConfig, tracker: Tracker, run_id: str, dataset: Dataset, made: Distillation, trial: int
) -> str:
    """Register the student; in words, whether it is champion now."""
    images, _ = next(dataset.test.batches(2))
    card = f"# {config.model_name}: student by {made.method} on {dataset.name}\n\n{made.to_markdown()}\n"
    candidate = Candidate(
        file=made.student,
        module=Classifier(load_student(made.student).network),
        example={"images": images},
        study=config.name,
        trial=trial,
        run_id=run_id,
        measured=Measured(
            on="dataset",
            fingerprint=dataset.fingerprint,
            protocol=f"{len(dataset.selection)} selection images of {dataset.name}",
            selection=made.selection_accuracy,
            test=made.rows[-1].accuracy,
        ),
        evaluation=made.to_dict(),
        card=card,
    )
    return register_champion(tracker, config.model_name, candidate).comparison
