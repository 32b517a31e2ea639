"""Ray Tune's scheduler: reports to the study, and stops a trial when its Optuna pruner says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kt_ray.search.driver import Ledger


class PruningScheduler(FIFOScheduler):
    """First in, first out; each result goes to the ledger, which decides whether the trial goes on."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP for a trial that is pruned or has failed."""
        goes_on = self._ledger.hear(trial.trial_id, result["report"])
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker died: keep its words for the ledger before Ray Tune forgets them."""
        words = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
        self._ledger.blame(trial.trial_id, words)
