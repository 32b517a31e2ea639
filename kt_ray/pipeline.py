"""The whole path: zoo → search → one evaluation on test images → champion. Each stage goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from kt_ray.config import DistillConfig, SearchConfig, StudyConfig
from kt_ray.data import Dataset, load_dataset
from kt_ray.errors import ConfigError, StudyError, ZooError
from kt_ray.lookup import open_workspace, started_from, study_config, study_report
from kt_ray.narrator import Narrator
from kt_ray.ray_cluster import connected
from kt_ray.search.runner import SearchResult, run_search
from kt_ray.tracking.tracker import Input, Tracker
from kt_ray.workspace import Workspace
from kt_ray.zoo.members import Zoo, members_of
from kt_ray.zoo.store import ZooStore

CONCLUSION = "conclusion.json"
OUTBOX = "mlflow-outbox.jsonl"
Search = TypeVar("Search", bound=SearchConfig)


@dataclass(frozen=True)
class Conclusion:
    """What a finished study came to: its best translator on test members and test images, and the registry's answer."""

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


def run(
    config: StudyConfig, workspace: Workspace, narrator: Narrator, *, accept_changes: bool = False
) -> Conclusion | None:
    """Bring the study to its end and conclude it; does only what is still lacking.

    Returns None where the search was stopped before its end. Raises the KTError of the stage that cannot go on, a
    StudyError where zoo, dataset or base trial are not those of the study's trials, unless `accept_changes`.
    """
    present = read_conclusion(workspace, config.name)
    if present is not None and _complete(config, workspace, present):
        narrator.say(f"study {config.name} is finished: nothing to do")
        _tell(config, workspace, present, narrator)
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
    conclusion = _conclude(config, workspace, zoo, dataset, tracker, result)
    _tell(config, workspace, conclusion, narrator)
    return conclusion


def resume(
    study: str,
    root: Path | None,
    narrator: Narrator,
    *,
    trials: int | None = None,
    add: int | None = None,
    hours: float | None = None,
    device_hours: float | None = None,
    start_from: Sequence[str] = (),
    accept_changes: bool = False,
) -> Conclusion | None:
    """Go on with a study as it was last run: `trials` in all or `add` more, `hours` of this run, `device_hours` in all.

    `start_from` names studies or champions whose points are tried next. Raises StudyError where the workspace has no
    such study, ConfigError where both `trials` and `add` are given.
    """
    config = study_config(study, root)
    wanted = extended(config.search, trials=trials, add=add, hours=hours, device_hours=device_hours)
    config = config.model_copy(update={"search": wanted})
    workspace = open_workspace(config, root)
    return run(started_from(config, workspace, start_from), workspace, narrator, accept_changes=accept_changes)


def extended(
    search: Search, *, trials: int | None, add: int | None, hours: float | None, device_hours: float | None
) -> Search:
    """`search` with what is given in place of its own budgets. Raises ConfigError where `trials` and `add` both are."""
    if trials is not None and add is not None:
        raise ConfigError("--trials and --add exclude each other; give one")
    budgets = {"hours": hours, "device_hours": device_hours}
    given = {name: value for name, value in budgets.items() if value is not None}
    return search.model_copy(update={"trials": trials or search.trials + (add or 0), **given})


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
    lacking = len(_lacking(config, store))
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


def read_conclusion(workspace: Workspace, study: str) -> Conclusion | None:
    """What the study came to last, if it came to an end."""
    path = workspace.study_directory(study) / CONCLUSION
    return Conclusion(**json.loads(path.read_text())) if path.is_file() else None


def _complete(config: StudyConfig, workspace: Workspace, conclusion: Conclusion) -> bool:
    """Whether the conclusion is of a whole zoo and of all the trials asked for. Starts nothing."""
    from kt_ray.search.storage import open_storage
    from kt_ray.search.study import SearchStudy

    store = ZooStore(workspace.zoo(config.zoo.name))
    if not store.exists() or _lacking(config, store):
        return False
    study = SearchStudy(config, open_storage(workspace.study_storage))
    return study.finished() >= config.search.trials and Path(conclusion.translator).is_file()


def _lacking(config: StudyConfig, store: ZooStore) -> set[str]:
    present = store.present() if store.exists() else set()
    return {member.id for member in members_of(config.zoo.seed, config.zoo.members)} - present


def _build(config: StudyConfig, workspace: Workspace, dataset: Dataset, tracker: Tracker, narrator: Narrator) -> Zoo:
    from kt_ray.zoo.actors import BuildProgress, build_zoo

    store = ZooStore(workspace.zoo(config.zoo.name))
    lacking = _lacking(config, store)
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
    (directory / "study.json").write_text(config.model_dump_json(indent=1))
    narrator.say(f"search: up to {config.search.trials} trials over {len(config.space)} paths")
    result = run_search(config, workspace, zoo, dataset, tracker, narrator.searching, accept_changes=accept_changes)
    narrator.settle()
    if result.stopped is not None:
        tracker.finish(result.study_run, "KILLED", {"kt_ray.state": f"stopped by {result.stopped}"})
        narrator.say(f"stopped by {result.stopped}; nothing is lost\nresume: {resume_command(config, workspace)}")
    elif result.best_trial is None:
        raise StudyError(f"no trial of {config.name} was complete; `kt-ray trials {config.name}` says why")
    return result


def _conclude(
    config: StudyConfig, workspace: Workspace, zoo: Zoo, dataset: Dataset, tracker: Tracker, result: SearchResult
) -> Conclusion:
    """Evaluate the best translator on test members and test images, once a translator, and register it."""
    from kt_ray.evaluation import evaluate
    from kt_ray.tracking.figures import accuracy_histogram
    from kt_ray.tracking.registry import register_champion
    from kt_ray.translators.checkpoint import load_translator

    if result.best_trial is None or result.translator is None:
        raise StudyError(f"the translator of the best trial of {config.name} is missing; add trials with kt-ray resume")
    present = read_conclusion(workspace, config.name)
    loaded = load_translator(result.translator)
    made = (result.best_trial, result.best_value, result.best_params, zoo.fingerprint)
    if present is not None and (present.trial, present.value, present.params, present.zoo) == made:
        evaluation, table = present.evaluation, present.table
    else:
        measured = evaluate(loaded.translator, zoo, dataset)
        evaluation, table = measured.to_dict(), measured.to_markdown()
    accuracies = {row["name"]: row["accuracies"] for row in evaluation["rows"]}
    translated = next(row for row in evaluation["rows"] if row["name"] == "translated")
    run_id = tracker.trial_run(result.study_run, config.name, result.best_trial, {}, {})
    registered = register_champion(
        tracker,
        config.model_name,
        result.translator,
        loaded.translator,
        {name: value[:2] for name, value in loaded.translator.read(zoo.where("test").parameters).items()},
        evaluation,
        accuracy=translated["mean"],
        zoo_fingerprint=zoo.fingerprint,
        study=config.name,
        trial=result.best_trial,
        run_id=run_id,
        protocol=f"{len(zoo.where('test'))} test members, {len(dataset.test)} test images, {dataset.fingerprint}",
        card=model_card(config, table),
    )
    tracker.finish(run_id, "FINISHED")
    tracker.log_inputs(
        result.study_run,
        [
            Input(dataset.name, dataset.fingerprint, dataset.name),
            Input(config.zoo.name, zoo.fingerprint, workspace.zoo(config.zoo.name)),
        ],
    )
    tracker.log_text(result.study_run, table, "evaluation.md")
    tracker.log_figure(result.study_run, accuracy_histogram(accuracies), "figures/accuracy.png")
    metrics = {f"test_{name}": translated[name] for name in ("mean", "min", "max")}
    tracker.log(result.study_run, metrics, result.progress.total)
    tracker.finish(result.study_run, "FINISHED")
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
    )
    path = workspace.study_directory(config.name) / CONCLUSION
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(asdict(conclusion), indent=1))
    temporary.replace(path)
    tracker.log_artifact(result.study_run, study_report(workspace, config.name))
    return conclusion


def model_card(config: StudyConfig, table: str) -> str:
    """What a registered translator is for, from what it was made, how well it did. Markdown."""
    counts = config.zoo.members
    return (
        f"# {config.model_name}: translator for {config.pair}\n\n"
        f"Reads the parameters of a trained source block and writes those of the target block (arXiv 2401.05772).\n\n"
        f"Found by the study `{config.name}` over the zoo `{config.zoo.name}`: {counts.train} training, "
        f"{counts.selection} selection and {counts.test} test members trained on {config.dataset.name}. "
        "Selected on selection members and selection images; the table below is on test members and test images.\n\n"
        f"{table}\n"
        "It translates blocks of networks trained like these members; others were not measured.\n"
    )


def resume_command(config: StudyConfig | DistillConfig, workspace: Workspace) -> str:
    """What to type to go on with the study."""
    default = workspace.root == Path("kt-workspace").absolute()
    return f"kt-ray resume {config.name}" + ("" if default else f" --workspace {workspace.root}")


def _tell(config: StudyConfig, workspace: Workspace, conclusion: Conclusion, narrator: Narrator) -> None:
    """The end of a run: table, where everything lies, what to type next."""
    model = f"models:/{conclusion.model}@champion"
    place = "" if workspace.root == Path("kt-workspace").absolute() else f" --workspace {workspace.root}"
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
    narrator.say(f"browse:    kt-ray ui{place}")
    narrator.say(f"translate: kt-ray translate {model} CHECKPOINT -o OUT.safetensors{place}")
    narrator.say(f"extend:    {resume_command(config, workspace)} --add 12")
