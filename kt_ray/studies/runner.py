"""A study from its file to its conclusion, whatever it trains. Each stage goes on where it stopped."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kt_ray.config import DistillConfig
from kt_ray.data import load_dataset
from kt_ray.errors import TrackingError
from kt_ray.jobs.connection import connected, ending_on_sigterm
from kt_ray.search.lease import wait_until_free
from kt_ray.search.runner import SearchResult, run_search
from kt_ray.search.storage import open_storage, study_names
from kt_ray.search.study import SearchStudy
from kt_ray.search.study_identity import check_code
from kt_ray.search.summary import load_study, no_champion
from kt_ray.studies.conclusion import CONCLUSION, Conclusion, conclude, print_conclusion, read_conclusion
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.distillation_study import DistillationStudy
from kt_ray.studies.extension import resume_command
from kt_ray.studies.study_file import Config, store_config
from kt_ray.studies.study_task import Best, StudyTask
from kt_ray.studies.translation_study import TranslationStudy
from kt_ray.studies.workspace import Workspace, open_tracker
from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.view import save_view


def study_task(config: Config, workspace: Workspace) -> StudyTask:
    """Return the study of the kind that `config` is of."""
    if isinstance(config, DistillConfig):
        return DistillationStudy(config, workspace)
    return TranslationStudy(config, workspace)


def run_study(
    config: Config,
    workspace: Workspace,
    console: StudyConsole,
    *,
    accept_changes: bool = False,
    accept_weak: bool = False,
) -> Conclusion | None:
    """Bring the study to its end and conclude it; does only what is still lacking.

    With `accept_weak` its model may become champion though a block that costs nothing is better.

    Returns None if the search was stopped before its end. Raises the KTError of the stage that cannot go on, a
    StudyError if code, zoo, dataset or base trial are not those of the study's trials, unless `accept_changes`.
    """
    _check_study(config, workspace, accept_changes)
    task = study_task(config, workspace)
    present = read_conclusion(workspace, config.name)
    if present is not None and _complete(task, present):
        console.say(f"study {config.name} is finished: nothing to do")
        print_conclusion(task, present, console)
        return present
    if present is not None and not task.demands:
        (workspace.study_directory(config.name) / CONCLUSION).unlink(missing_ok=True)  # it is of another student
    tracker = open_tracker(config, workspace)
    with ending_on_sigterm():
        best = _best(task, tracker, console, build=True, accept_changes=accept_changes)
        if best is None:
            return None
        conclusion = conclude(task, tracker, best, accept_weak=accept_weak)
    print_conclusion(task, conclusion, console)
    return conclusion


def search_study(
    config: Config, workspace: Workspace, console: StudyConsole, *, accept_changes: bool = False
) -> Best | None:
    """Run the missing trials of the study, over a zoo that is built; return the best one, None if it was stopped.

    Raises ZooError if members of the zoo are missing, StudyError as `run_study` does.
    """
    _check_study(config, workspace, accept_changes)
    tracker = open_tracker(config, workspace)
    return _best(study_task(config, workspace), tracker, console, build=False, accept_changes=accept_changes)


def _check_study(config: Config, workspace: Workspace, accept_changes: bool) -> None:
    """Raise StudyError, before anything is read, stored or trained, if trials of the study ran other code, or another
    driver is searching it, whose entries for MLflow may be waiting."""
    if config.name not in study_names(workspace.study_storage):
        return
    study = load_study(workspace.study_storage, config.name)
    if not accept_changes:
        check_code(config, study)
    wait_until_free(study)


def _complete(task: StudyTask, conclusion: Conclusion) -> bool:
    """Return whether the conclusion is in MLflow and has all that is asked for. Starts nothing."""
    if not conclusion.reported or not Path(conclusion.file).is_file() or not task.unchanged():
        return False
    if not task.demands:
        return True
    study = SearchStudy(task.config, open_storage(task.workspace.study_storage))
    return study.finished() >= task.config.search.trials


def _best(
    task: StudyTask, tracker: Tracker, console: StudyConsole, *, build: bool, accept_changes: bool
) -> Best | None:
    config, workspace = task.config, task.workspace
    dataset = load_dataset(config.dataset)
    about = task.begin(dataset, tracker, console)
    console.say(f"study {config.name}: {about}; in {workspace.root}")
    store_config(config, workspace)
    if not task.demands:
        return task.train_alone()
    _save_view(config, tracker)
    with connected(config.ray):
        shared = task.prepare(build)
        console.say(f"search: up to {config.search.trials} trials over {len(config.space)} paths")
        result = run_search(config, workspace, shared, tracker, console.searching, accept_changes=accept_changes)
        console.settle()
        if result.stopped is not None:
            tracker.finish(result.study_run, "KILLED", {"kt_ray.state": f"stopped by {result.stopped}"})
            console.say(f"stopped by {result.stopped}; nothing is lost\nresume: {resume_command(config, workspace)}")
            return None
    if result.limit is not None and result.progress.done + result.progress.pruned < result.progress.total:
        console.say(f"the search ends before its {result.progress.total} trials: {result.limit}")
    return _of_search(task, result, tracker)


def _save_view(config: Config, tracker: Tracker) -> None:
    """Save the view of the study's trials in MLflow; the next command does it if MLflow cannot now."""
    objectives = config.search.objectives
    metrics = dict.fromkeys([*(objective.metric for objective in objectives), "loss"])
    in_every_trial_first = sorted(config.space, key=lambda path: bool(config.space[path].when))
    with suppress(TrackingError):
        save_view(
            tracker, config.name, list(metrics), in_every_trial_first, maximize=objectives[0].direction == "maximize"
        )


def _of_search(task: StudyTask, result: SearchResult, tracker: Tracker) -> Best:
    """Return the best trial with its run. Raises StudyError if no trial was complete."""
    name = task.config.name
    if result.best_trial is None:
        tracker.finish(result.study_run, "FAILED")
        raise no_champion(load_study(task.workspace.study_storage, name))
    run = tracker.trial_run(result.study_run, name, result.best_trial, {}, {})
    return Best(
        trial=result.best_trial,
        value=None if result.best_value is None else float(result.best_value),
        params=result.best_params,
        file=result.translator,
        study_run=result.study_run,
        trial_run=run,
        step=result.progress.total,
    )
