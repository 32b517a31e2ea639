"""Ray Tune's searcher: hands on what the ledger asks of the study, and tells it how trials ended."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from kt_ray.search.driver import Ledger


class StudySearcher(Searcher):
    """Suggests the trials of an Optuna study. Ray Tune keeps no state of the search: nothing to save or restore."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def suggest(self, trial_id: str) -> Any:
        """A trial's configuration, None while there is nothing to start, FINISHED when the search is over."""
        if self._ledger.over:
            return Searcher.FINISHED
        return self._ledger.start(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray Tune let go of the trial; with `error`, its worker died."""
        self._ledger.end(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study has it all."""
