"""What a person sees: the MLflow UI on a finished study, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kt_ray.tracking.promotion import Candidate, Measured, register_champion
from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.ui import start, stop
from kt_ray.tracking.view import save_view
from tests.tracking.browser import MISSING, Browser, browser
from tests.tracking.conftest import Halving
from tests.tracking.pages import Pages
from tests.tracking.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

TRIALS = 4


@dataclass(frozen=True)
class Seen:
    """A finished study and the browser on its pages."""

    pages: Pages
    study: str
    trials: list[str]
    comparison: str


@pytest.fixture(scope="module")
def seen(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Four trials of which one was pruned, a champion, and a browser on the UI."""
    directory = tmp_path_factory.mktemp("seen")
    (directory / "mlflow.db").write_bytes(empty_store.read_bytes())
    root = (directory / "artifacts").as_uri()
    tracker = Tracker(f"sqlite:///{directory}/mlflow.db", "kt_ray", root)
    study, trials = tracker.study_run("digits", {"search.trials": TRIALS}), []
    for lineage in range(TRIALS):
        params = {"training.learning_rate": 10.0**-lineage, "translator.family": ["mixer", "graph"][lineage % 2]}
        trials.append(tracker.trial_run(study, "digits", lineage, params))
        for epoch in range(1, 4 - lineage // 3):
            tracker.log(trials[-1], {"loss": 1 / epoch, "accuracy_mean": 0.2 * epoch + 0.01 * lineage}, epoch)
        tracker.finish(trials[-1], "KILLED" if lineage == 3 else "FINISHED")
    tracker.finish(study, "FINISHED")
    save_view(tracker, "digits", ["accuracy_mean", "loss"], list(params))
    tracker.log_text(study, "<h1>Study digits</h1>", "report.html")
    translator, example = Halving(), {"conv1.weight": torch.randn(2, 4, 3)}
    save_file(translator.state_dict(), directory / "translator.safetensors")
    candidate = Candidate(
        file=directory / "translator.safetensors",
        module=translator,
        example=example,
        study="digits",
        trial=2,
        run_id=trials[2],
        measured=Measured(on="zoo", fingerprint="z", protocol="3 selection members", selection=0.62, test=0.6),
    )
    result = register_champion(tracker, "kt-translator", candidate)
    port = free_port()
    server = start(tracker.uri, root, port=port)
    try:
        with browser(directory / "profile") as window:
            pages = Pages(window, f"http://127.0.0.1:{port}", tracker.experiment_id)
            yield Seen(pages, study, trials, result.comparison)
    finally:
        stop(server, patience=0.5)


def test_trials_are_folded_under_their_study(seen: Seen) -> None:
    text = seen.pages.runs("digits")
    assert all(f"trial {lineage}" in text for lineage in range(TRIALS))


def test_the_view_of_a_study_opens_with_objective_and_parameters(seen: Seen) -> None:
    always = {"", "Run Name", "Created", "Duration", "Metrics", "Parameters"}
    columns = set(seen.pages.trials("digits")) - always
    assert columns == {"accuracy_mean", "loss", "training.learning_rate", "translator.family"}
    order = [line for line in seen.pages.browser.text().splitlines() if line.startswith("trial ")]
    assert order == ["trial 2", "trial 1", "trial 0", "trial 3"]  # by accuracy, the best first


def test_a_trial_has_charts_of_its_metrics(seen: Seen) -> None:
    assert seen.pages.metrics(seen.trials[0], "loss", "accuracy_mean") >= 2


def test_parallel_coordinates_over_the_search_parameters(seen: Seen) -> None:
    axes = seen.pages.compare(seen.trials)
    assert {"training.learning_rate", "translator.family"} <= set(axes)
    assert {"loss", "accuracy_mean"} & set(axes)


def test_the_champion_is_registered_with_its_comparison(seen: Seen) -> None:
    assert "@ champion" in seen.pages.model("kt-translator")
    text = seen.pages.version("kt-translator", 1)
    assert seen.comparison in text
    assert "trial 2" in text
    assert "Inputs (1)" in text


def test_the_report_opens_on_the_study(seen: Seen) -> None:
    assert "report.html" in seen.pages.artifact(seen.study, "report.html")


def test_the_browser_sees_no_error(seen: Seen) -> None:
    window: Browser = seen.pages.browser
    window.open(f"{seen.pages.experiment}/runs/{seen.study}")
    text = window.wait_for("digits", "Finished")
    assert "error" not in text.lower()
