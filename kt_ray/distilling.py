"""`kt-ray distill`: teacher → paraphraser → student, or a search over students; one look at the test images; MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kt_ray.config import DistillConfig, load_config
from kt_ray.data import Dataset, load_dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.distill import Distillation, conclude, distill, load_student
from kt_ray.distillation.stages import Progress, Stages
from kt_ray.distillation.trials import StudentTask, prepare
from kt_ray.errors import ConfigError, StudyError
from kt_ray.narrator import Narrator
from kt_ray.networks import State
from kt_ray.pipeline import open_tracker
from kt_ray.ray_cluster import connected
from kt_ray.search.runner import run_task
from kt_ray.tracking.registry import register_champion
from kt_ray.tracking.runs import Input
from kt_ray.tracking.tracker import Tracker
from kt_ray.validation import search_problems
from kt_ray.workspace import Workspace

CONCLUSION = "distillation.json"


def read_distillation(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """The distillation file at `path`, its space checked against its base. Raises ConfigError with all faults."""
    config = load_config(DistillConfig, path, overrides)
    faults = search_problems(config)
    if faults:
        raise ConfigError(faults, str(path))
    return config


def run(config: DistillConfig, workspace: Workspace, narrator: Narrator) -> Distillation | None:
    """Bring the distillation to its end; does only what is still lacking.

    Returns None where a search was stopped before its end. Raises the KTError of the stage that cannot go on.
    """
    dataset = load_dataset(config.dataset)
    directory = workspace.study_directory(config.name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "distill.json").write_text(config.model_dump_json(indent=1))
    tracker = open_tracker(config, workspace)
    run_id = tracker.study_run(config.name, {"method": config.method.name, "dataset": dataset.name})
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
        made = (_searched if config.space else _straight)(config, workspace, stages, tracker, narrator)
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
    (directory / CONCLUSION).write_text(json.dumps(distillation.to_dict(), indent=1))
    narrator.say(distillation.to_markdown())
    narrator.say(f"student:  {distillation.student}")
    narrator.say(f"registry: {comparison}")
    narrator.say(f"MLflow:   {tracker.run_url(run_id)}")
    return distillation


def _straight(
    config: DistillConfig, workspace: Workspace, stages: Stages, tracker: Tracker, narrator: Narrator
) -> tuple[Distillation, int]:
    directory = workspace.study_directory(config.name)
    return distill(config.trial, stages.cache.directory, directory, stages.dataset, stages.report, stages.device), 0


def _searched(
    config: DistillConfig, workspace: Workspace, stages: Stages, tracker: Tracker, narrator: Narrator
) -> tuple[Distillation, int] | None:
    task = StudentTask(prepare(config, stages), stages.dataset)
    narrator.settle()
    narrator.say(f"search: up to {config.search.trials} students over {len(config.space)} paths")
    with connected(config.ray):
        result = run_task(config, workspace, task, tracker, narrator.searching)
    narrator.settle()
    if result.stopped is not None:
        narrator.say(f"stopped by {result.stopped}; nothing is lost: the same command goes on")
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
    return register_champion(
        tracker,
        config.model_name,
        made.student,
        Classifier(load_student(made.student).network),
        {"images": images},
        made.to_dict(),
        accuracy=made.rows[-1].accuracy,
        zoo_fingerprint=dataset.fingerprint,
        study=config.name,
        trial=trial,
        run_id=run_id,
        protocol=f"{len(dataset.test)} test images of {dataset.name}",
        card=card,
    ).comparison
