"""What a study came to: its champion evaluated once on test images, registered, written down and told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kt_ray._io.checksum import checked_json, json_with_checksum
from kt_ray._io.files import write_whole
from kt_ray.config import StudyConfig
from kt_ray.data import Dataset
from kt_ray.errors import StudyError
from kt_ray.studies.console import Narrator
from kt_ray.studies.lookup import study_report
from kt_ray.studies.resuming import resume_command
from kt_ray.studies.workspace import Workspace, reading
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.translation.evaluation import Evaluation, evaluate, free_accuracies
from kt_ray.zoo.members import Zoo

if TYPE_CHECKING:
    from kt_ray.search.runner import SearchResult
    from kt_ray.translation.checkpoint import LoadedTranslator

CONCLUSION = "conclusion.json"


@dataclass(frozen=True)
class Conclusion:
    """What a finished study came to: its best translator on test members and test images, and the registry's answer.

    `reported` is whether MLflow has the report; until then the study is not finished.
    """

    study: str
    trial: int
    value: float
    params: dict[str, Any]
    zoo: str
    dataset: str
    translator: str
    evaluation: dict[str, Any]
    table: str
    model: str
    version: int
    promoted: bool
    comparison: str
    study_page: str
    reported: bool = True
    model_uri: str = ""
    weakness: str = ""


def read_conclusion(workspace: Workspace, study: str) -> Conclusion | None:
    """What the study came to last, if it came to an end. Raises StudyError where that is damaged."""
    path = workspace.study_directory(study) / CONCLUSION
    if not path.is_file():
        return None
    with reading(path):
        return Conclusion(**checked_json(path.read_bytes()))


def conclude(
    config: StudyConfig,
    workspace: Workspace,
    zoo: Zoo,
    dataset: Dataset,
    tracker: Tracker,
    result: SearchResult,
    *,
    accept_weak: bool = False,
) -> Conclusion:
    """Evaluate the best translator on test members and test images, once a translator, and register it.

    One that is worse than a block that costs nothing becomes champion only with `accept_weak`.
    Raises StudyError where the translator's file is missing.
    """
    from kt_ray.tracking.promotion import Candidate, Measured, register_champion
    from kt_ray.translation.checkpoint import load_translator

    if result.best_trial is None or result.translator is None:
        raise StudyError(f"the translator of the best trial of {config.name} is missing; add trials with kt-ray resume")
    loaded = load_translator(result.translator)
    translator = loaded.translator
    present = read_conclusion(workspace, config.name)
    made = (result.best_trial, result.best_value, result.best_params, zoo.fingerprint)
    if present is not None and (present.trial, present.value, present.params, present.zoo) == made:
        measured = Evaluation.from_dict(present.evaluation)
    else:
        measured = evaluate(translator, zoo, dataset)
    evaluation, table = measured.to_dict(), measured.to_markdown()
    run_id = tracker.trial_run(result.study_run, config.name, result.best_trial, {}, {})
    candidate = Candidate(
        file=result.translator,
        module=translator,
        example={name: value[:2] for name, value in translator.read(zoo.where("test").parameters).items()},
        study=config.name,
        trial=result.best_trial,
        run_id=run_id,
        measured=Measured(
            on="zoo",
            fingerprint=zoo.fingerprint,
            protocol=f"{len(zoo.where('selection'))} selection members, {len(dataset.selection)} selection images, "
            f"{dataset.fingerprint}",
            selection=selection_accuracy(loaded, zoo),
            test=measured.row("translated").mean,
            free=free_accuracies(zoo, dataset),
        ),
        evaluation=evaluation,
        card=model_card(config, table),
        dataset=dataset.name,
    )
    registered = register_champion(tracker, config.model_name, candidate, accept_weak=accept_weak)
    tracker.finish(run_id, "FINISHED")
    tracker.log_inputs(
        result.study_run,
        [
            Input(dataset.name, dataset.fingerprint, dataset.name),
            Input(config.zoo.name, zoo.fingerprint, workspace.zoo(config.zoo.name)),
        ],
    )
    _log(tracker, result, measured)
    conclusion = Conclusion(
        study=config.name,
        trial=result.best_trial,
        value=float(result.best_value or 0.0),
        params=result.best_params,
        zoo=zoo.fingerprint,
        dataset=dataset.fingerprint,
        translator=str(result.translator),
        evaluation=evaluation,
        table=table,
        model=config.model_name,
        version=registered.version,
        promoted=registered.promoted,
        comparison=registered.comparison,
        study_page=tracker.run_url(result.study_run),
        reported=False,
        model_uri=registered.uri,
        weakness=registered.weakness,
    )
    _write(workspace, conclusion)  # the report reads it
    tracker.log_artifact(result.study_run, study_report(workspace, config.name))
    conclusion = replace(conclusion, reported=True)
    _write(workspace, conclusion)
    return conclusion


def model_card(config: StudyConfig, table: str) -> str:
    """What a registered translator is for, from what it was made, how well it did. Markdown."""
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


def selection_accuracy(loaded: LoadedTranslator, zoo: Zoo) -> float | None:
    """Mean accuracy that the trial reported of these weights, as their file has it; None if that was on another zoo."""
    if loaded.extra.get("zoo") != zoo.fingerprint:
        return None
    accuracy: float | None = loaded.extra.get("metrics", {}).get("accuracy_mean")
    return accuracy


def tell(config: StudyConfig, workspace: Workspace, conclusion: Conclusion, narrator: Narrator) -> None:
    """The end of a run: table, where everything lies, what to type next."""
    narrator.say()
    narrator.evaluation(conclusion.evaluation)
    narrator.say(
        f"best: trial {conclusion.trial}, {config.search.objectives[0].metric} {conclusion.value:.4f} "
        "on selection members and images"
    )
    narrator.say(f"registry: {conclusion.comparison}")
    for label, value in {
        "zoo": workspace.zoo(config.zoo.name),
        "study": f"{workspace.study_storage} ({config.name})",
        "report": str(workspace.study_directory(config.name)),
        "MLflow": workspace.tracking_uri,
        "page": conclusion.study_page,
    }.items():
        narrator.say(f"{label + ':':<8} {value}")
    model = conclusion.model_uri or f"models:/{conclusion.model}@champion"
    narrator.say(f"browse:    kt-ray ui{workspace.option}")
    narrator.say(f"translate: kt-ray translate {model} CHECKPOINT -o OUT.safetensors{workspace.option}")
    narrator.say(f"extend:    {resume_command(config, workspace)} --add 12")


def _log(tracker: Tracker, result: SearchResult, evaluation: Evaluation) -> None:
    """The evaluation on the study's run, which ends with it."""
    from kt_ray.translation.figures import figures

    tracker.log_text(result.study_run, evaluation.to_markdown(), "evaluation.md")
    for name, figure in figures(evaluation).items():
        tracker.log_figure(result.study_run, figure, f"figures/{name}.png")
    translated = evaluation.row("translated")
    metrics = {"test_mean": translated.mean, "test_min": translated.min, "test_max": translated.max}
    tracker.log(result.study_run, metrics, result.progress.total)
    tracker.finish(result.study_run, "FINISHED")


def _write(workspace: Workspace, conclusion: Conclusion) -> None:
    path = workspace.study_directory(conclusion.study) / CONCLUSION
    write_whole(path, json_with_checksum(asdict(conclusion)))
