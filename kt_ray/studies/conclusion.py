"""The conclusion of a study: its best model is measured once on test images, registered, stored and printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from kt_ray._io.checksum import json_with_checksum
from kt_ray._io.display import Displayed
from kt_ray._io.files import write_whole
from kt_ray._io.text import number
from kt_ray.config import Frozen
from kt_ray.distillation.distill import Distillation
from kt_ray.errors import StudyError
from kt_ray.search.summary import trial_rows
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.doubts import doubts
from kt_ray.studies.extension import resume_command
from kt_ray.studies.report import study_report
from kt_ray.studies.study_file import Kind
from kt_ray.studies.study_task import Best, Result, StudyTask
from kt_ray.studies.workspace import Workspace, read_json
from kt_ray.tracking.promotion import Candidate, register_champion
from kt_ray.tracking.registry import champions, load_champion_path
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.translation.evaluation import Evaluation

CONCLUSION = "conclusion.json"
OLD_CONCLUSION = "distillation.json"  # of students, in releases before there was one conclusion


class Conclusion(Displayed, Frozen):
    """The result of a finished study: its best model on test images, and the registry's answer.

    `zoo` is the fingerprint of what its trials shared. `reported` is whether MLflow has the report; until then the
    study is not finished. `doubts` are results that a person should look at before using the model.
    """

    kind: Kind = "translation"
    study: str
    trial: int
    value: float | None
    params: dict[str, Any] = Field(default_factory=dict)
    zoo: str = ""
    dataset: str = ""
    file: str = Field(alias="translator")
    evaluation: Evaluation | Distillation
    table: str = ""
    model: str = ""
    version: int = 0
    promoted: bool = False
    comparison: str = ""
    study_page: str = ""
    reported: bool = True
    model_uri: str = ""
    weakness: str = ""
    doubts: tuple[str, ...] = ()

    def display_title(self) -> str:
        return f"study {self.study}: best trial {self.trial}, {number(self.value)} on selection"

    def display_rows(self) -> list[dict[str, Any]]:
        rows = [{"": row.name, "value": f"{_accuracy(row):.4f} on test images"} for row in self.evaluation.rows]
        facts = {**self.params, "model": self.model_uri or self.file, "registry": self.comparison}
        doubts = [{"": "doubt", "value": doubt} for doubt in self.doubts]
        return [*rows, *({"": name, "value": value} for name, value in facts.items()), *doubts]

    __str__ = Displayed.__repr__


def _accuracy(row: Any) -> float:
    return float(row.mean if hasattr(row, "mean") else row.accuracy)


def read_conclusion(workspace: Workspace, study: str) -> Conclusion | None:
    """Return what the study came to last, if it came to an end. Raises StudyError if that is damaged."""
    directory = workspace.study_directory(study)
    if (directory / CONCLUSION).is_file():
        return read_json(directory / CONCLUSION, Conclusion.model_validate)
    if not (directory / OLD_CONCLUSION).is_file():
        return None
    return read_json(directory / OLD_CONCLUSION, lambda content: _of_old_distillation(study, content))


def _of_old_distillation(study: str, content: Any) -> Conclusion:
    found = {"value": content["selection_accuracy"], "translator": content["student"], "evaluation": content}
    return Conclusion.model_validate({"kind": "distillation", "study": study, "trial": 0, **found, "reported": False})


def conclude(task: StudyTask, tracker: Tracker, best: Best, *, accept_weak: bool = False) -> Conclusion:
    """Measure the best model on test images, once a model, and register it.

    One that is worse than a block that costs nothing becomes champion only with `accept_weak`.
    Raises StudyError if the model's file is missing.
    """
    config, workspace = task.config, task.workspace
    with tracker.ending(best.study_run):
        file = _file_of(task, tracker, best)
        result = task.measure(file, _measured_before(task, best))
        registered = register_champion(
            tracker,
            config.model_name,
            Candidate(
                file=file,
                module=result.module,
                example=result.example,
                study=config.name,
                trial=best.trial,
                run_id=best.trial_run,
                measured=result.measured,
                evaluation=result.evaluation.to_dict(),
                card=result.card,
                dataset=task.dataset.name,
            ),
            accept_weak=accept_weak,
        )
        _log(task, tracker, best, result)
        conclusion = Conclusion(
            kind=config.kind,
            study=config.name,
            trial=best.trial,
            value=best.value,
            params=best.params,
            zoo=task.fingerprint,
            dataset=task.dataset.fingerprint,
            translator=str(file),
            evaluation=result.evaluation,
            table=result.evaluation.to_markdown(),
            model=config.model_name,
            version=registered.version,
            promoted=registered.promoted,
            comparison=registered.comparison,
            study_page=tracker.run_url(best.study_run),
            reported=False,
            model_uri=registered.uri,
            weakness=registered.weakness,
            doubts=tuple(_doubts(task, best, result)),
        )
        _write(workspace, conclusion)  # the report reads it
        if task.demands:
            evaluation = conclusion.evaluation.to_dict()
            tracker.log_artifact(best.study_run, study_report(workspace, config.name, evaluation))
        conclusion = conclusion.model_copy(update={"reported": True})
        _write(workspace, conclusion)
    return conclusion


def _doubts(task: StudyTask, best: Best, result: Result) -> Iterator[str]:
    """Yield what a person should look at before using the model."""
    values: list[float] = []
    objectives = task.config.search.objectives
    if task.demands and len(objectives) == 1 and objectives[0].metric in ("accuracy", "accuracy_mean"):
        rows = trial_rows(task.workspace.study_storage, task.config.name)
        values = [row["value"] for row in rows if row["state"] == "COMPLETE"]
    measured, images = result.measured, task.dataset.selection
    return doubts(result.trained, task.dataset.classes, measured.selection, measured.test, values, len(images))


def _file_of(task: StudyTask, tracker: Tracker, best: Best) -> Path:
    """Return the best model's file: where its trial left it, or where the registry has it from an earlier end."""
    if best.file is not None:
        return best.file
    name, model = task.config.name, task.config.model_name
    for entry in champions(tracker, model):
        if (entry.study, entry.trial, entry.fingerprint) == (name, str(best.trial), task.measured_on):
            return load_champion_path(tracker.uri, f"models:/{model}/{entry.version}")
    raise StudyError(
        f"the {task.makes} of the best trial {best.trial} of {name} is missing, and {model} has no version of it; "
        "add trials with kt-ray resume"
    )


def _measured_before(task: StudyTask, best: Best) -> Evaluation | Distillation | None:
    """Return what the same model gave on the same test images before, if it was measured."""
    present = read_conclusion(task.workspace, task.config.name)
    made = (best.trial, best.value, best.params, task.fingerprint)
    if present is None or (present.trial, present.value, present.params, present.zoo) != made:
        return None
    return present.evaluation


def _log(task: StudyTask, tracker: Tracker, best: Best, result: Result) -> None:
    """Log the evaluation on the study's run, which ends with it."""
    if best.trial_run != best.study_run:
        tracker.finish(best.trial_run, "FINISHED")
    dataset = task.dataset
    images = Input(dataset.name, dataset.fingerprint, dataset.name)
    tracker.log_inputs(best.study_run, [images, *([task.shared] if task.shared else [])])
    tracker.log_text(best.study_run, result.evaluation.to_markdown(), "evaluation.md")
    for name, figure in result.figures.items():
        tracker.log_figure(best.study_run, figure, f"figures/{name}.png")
    tracker.log(best.study_run, result.metrics, best.step)
    tracker.finish(best.study_run, "FINISHED")


def print_conclusion(task: StudyTask, conclusion: Conclusion, console: StudyConsole) -> None:
    """Print the end of a run: table, where everything is stored, what to type next."""
    config, workspace = task.config, task.workspace
    console.say()
    console.result(conclusion.evaluation)
    value = "-" if conclusion.value is None else f"{conclusion.value:.4f}"
    metric = config.search.objectives[0].metric
    console.say(f"best: trial {conclusion.trial}, {metric} {value} on selection {task.selected_on}")
    console.say(f"registry: {conclusion.comparison}")
    for doubt in conclusion.doubts:
        console.say(f"look:     {doubt}")
    places = {
        **task.places(conclusion),
        **({"study": f"{workspace.study_storage} ({config.name})"} if task.demands else {}),
        "report": str(workspace.study_directory(config.name)),
        "MLflow": workspace.tracking_uri,
        "page": conclusion.study_page,
    }
    for label, place in places.items():
        console.say(f"{label + ':':<8} {place}")
    console.say(f"browse:    kt-ray ui{workspace.option}")
    if task.makes == "translator":
        model = shlex.quote(conclusion.model_uri or f"models:/{conclusion.model}@champion")
        console.say(f"translate: kt-ray translate {model} CHECKPOINT -o OUT.safetensors{workspace.option}")
    if task.demands:
        console.say(f"extend:    {resume_command(config, workspace, more=True)}")


def _write(workspace: Workspace, conclusion: Conclusion) -> None:
    path = workspace.study_directory(conclusion.study) / CONCLUSION
    write_whole(path, json_with_checksum(conclusion.model_dump(mode="json")))
