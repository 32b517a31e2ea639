"""The whole path: zoo → search → one evaluation on test images → champion. Each stage goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

from kt_ray._io.checksum import json_with_checksum
from kt_ray._io.files import write_whole
from kt_ray.config import DistillConfig, StudyConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.errors import StudyError, ZooError
from kt_ray.jobs.connection import connected
from kt_ray.search.runner import SearchResult, run_search
from kt_ray.studies.conclusion import Conclusion, conclude, read_conclusion, tell
from kt_ray.studies.console import Narrator
from kt_ray.studies.lookup import open_workspace, started_from, study_config
from kt_ray.studies.resuming import Extension, resume_command
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.store import ZooStore

FILE = "study.json"  # the study file as resolved, in the study's directory
OUTBOX = "mlflow-outbox.jsonl"


def run(
    config: StudyConfig,
    workspace: Workspace,
    narrator: Narrator,
    *,
    accept_changes: bool = False,
    accept_weak: bool = False,
) -> Conclusion | None:
    """Bring the study to its end and conclude it; does only what is still lacking.

    With `accept_weak` its translator may become champion though a block that costs nothing is better.

    Returns None where the search was stopped before its end. Raises the KTError of the stage that cannot go on, a
    StudyError where zoo, dataset or base trial are not those of the study's trials, unless `accept_changes`.
    """
    present = read_conclusion(workspace, config.name)
    if present is not None and _complete(config, workspace, present):
        narrator.say(f"study {config.name} is finished: nothing to do")
        tell(config, workspace, present, narrator)
        return present
    dataset = load_dataset(config.dataset)
    narrator.say(
        f"study {config.name}: {config.pair} on {dataset.name}, zoo {config.zoo.name}, "
        f"{config.search.trials} trials; in {workspace.root}"
    )
    tracker = open_tracker(config, workspace)
    with connected(config.ray):
        zoo = _build(config, workspace, dataset, tracker, narrator)
        result = _search(config, workspace, zoo, dataset, tracker, narrator, accept_changes)
    if result.stopped is not None:
        return None
    conclusion = conclude(config, workspace, zoo, dataset, tracker, result, accept_weak=accept_weak)
    tell(config, workspace, conclusion, narrator)
    return conclusion


def resume(
    study: str,
    root: Path | None,
    narrator: Narrator,
    extension: Extension,
    *,
    accept_changes: bool = False,
    accept_weak: bool = False,
) -> Conclusion | None:
    """Go on with a study as it was last run, but for what `extension` asks for.

    Raises StudyError where the workspace has no such study, or a damaged file of it.
    """
    config = study_config(study, root)
    config = config.model_copy(update={"search": extension.extended(config.search)})
    workspace = open_workspace(config, root)
    config = started_from(config, workspace, extension.start_from)
    return run(config, workspace, narrator, accept_changes=accept_changes, accept_weak=accept_weak)


def build(config: StudyConfig, workspace: Workspace, narrator: Narrator) -> Zoo:
    """Train what the zoo of `config` lacks."""
    dataset = load_dataset(config.dataset)
    with connected(config.ray):
        return _build(config, workspace, dataset, open_tracker(config, workspace), narrator)


def search(
    config: StudyConfig, workspace: Workspace, narrator: Narrator, *, accept_changes: bool = False
) -> SearchResult:
    """Run the trials that the study lacks, over a zoo that is built. Raises ZooError where it is not."""
    store = ZooStore(workspace.zoo(config.zoo.name))
    lacking = len(store.missing(config.zoo))
    if lacking:
        raise ZooError(f"zoo {config.zoo.name} lacks {lacking} members; `kt-ray zoo build` or `kt-ray run` trains them")
    dataset = load_dataset(config.dataset)
    store.create(config.zoo, config.pair, dataset)
    with connected(config.ray):
        tracker = open_tracker(config, workspace)
        return _search(config, workspace, store.read(), dataset, tracker, narrator, accept_changes)


def open_tracker(config: StudyConfig | DistillConfig, workspace: Workspace) -> Tracker:
    """MLflow's experiment of the project. What it misses while it is away waits in the study's directory."""
    outbox = workspace.study_directory(config.name) / OUTBOX
    return Tracker(workspace.tracking_uri, config.project, workspace.artifact_root, outbox)


def _complete(config: StudyConfig, workspace: Workspace, conclusion: Conclusion) -> bool:
    """Whether the conclusion is in MLflow, of a whole zoo and of all the trials asked for. Starts nothing."""
    from kt_ray.search.storage import open_storage
    from kt_ray.search.study import SearchStudy

    try:
        if not conclusion.reported or ZooStore(workspace.zoo(config.zoo.name)).missing(config.zoo):
            return False
    except ZooError:  # damaged: building it mends it
        return False
    study = SearchStudy(config, open_storage(workspace.study_storage))
    return study.finished() >= config.search.trials and Path(conclusion.translator).is_file()


def _build(config: StudyConfig, workspace: Workspace, dataset: Dataset, tracker: Tracker, narrator: Narrator) -> Zoo:
    from kt_ray.zoo.actors import build_zoo
    from kt_ray.zoo.progress import BuildProgress

    store = ZooStore(workspace.zoo(config.zoo.name))
    lacking = store.prepare(config.zoo, config.pair, dataset)
    run_id = None
    if lacking:
        narrator.say(f"zoo {config.zoo.name}: training {len(lacking)} members into {store.uri}")
        params = {"members": sum(config.zoo.members.model_dump().values()), **config.zoo.recipe.model_dump(mode="json")}
        run_id = tracker.zoo_run(config.zoo.name, dataset.fingerprint, params, {"kt_ray.pair": config.pair})
        tracker.log_inputs(run_id, [Input(dataset.name, dataset.fingerprint, dataset.name)])

    def on_progress(progress: BuildProgress) -> None:
        narrator.building(progress)
        if run_id is not None:
            metrics = {"members": progress.done, "members_per_hour": progress.members_per_hour}
            if progress.mean_accuracy is not None:
                metrics["source_accuracy"] = progress.mean_accuracy
            tracker.log(run_id, metrics, progress.done)

    try:
        zoo = build_zoo(config.zoo, config.pair, dataset, store, on_progress)
    except BaseException as error:
        if run_id is not None:
            tracker.finish(run_id, "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    narrator.settle()
    if run_id is not None:
        tracker.finish(run_id, "FINISHED", {"kt_ray.zoo_fingerprint": zoo.fingerprint})
        info = store.info()
        narrator.say(
            f"zoo {config.zoo.name}: {sum(info.members.values())} members, {info.bytes / 1e6:.1f} MB, mean accuracy of "
            f"sources {info.source_accuracy:.4f}, of targets {info.target_accuracy:.4f}"
        )
    return zoo


def _search(
    config: StudyConfig,
    workspace: Workspace,
    zoo: Zoo,
    dataset: Dataset,
    tracker: Tracker,
    narrator: Narrator,
    accept_changes: bool,
) -> SearchResult:
    directory = workspace.study_directory(config.name)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / FILE, json_with_checksum(config.model_dump(mode="json")))
    narrator.say(f"search: up to {config.search.trials} trials over {len(config.space)} paths")
    result = run_search(
        config, workspace, TranslatorTask(zoo, dataset), tracker, narrator.searching, accept_changes=accept_changes
    )
    narrator.settle()
    if result.stopped is not None:
        tracker.finish(result.study_run, "KILLED", {"kt_ray.state": f"stopped by {result.stopped}"})
        narrator.say(f"stopped by {result.stopped}; nothing is lost\nresume: {resume_command(config, workspace)}")
    elif result.best_trial is None:
        raise StudyError(f"no trial of {config.name} was complete; `kt-ray trials {config.name}` says why")
    return result
