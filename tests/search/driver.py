"""A search in a process of its own, for tests that kill it: `python -m tests.search.driver WORKSPACE TRIALS SLEEP`."""

from __future__ import annotations

import sys
from pathlib import Path

from kt_ray.config import DatasetConfig, MemberCounts, RayConfig
from kt_ray.data import load_dataset
from kt_ray.jobs.connection import connected
from kt_ray.networks import PaperArchitecture
from kt_ray.search.runner import run_search
from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.translation.task import TranslatorTask
from kt_ray.zoo.untrained import untrained_zoo
from tests.search.stand_in import StandIn, study_config


def main(root: str, trials: str, sleep: str) -> None:
    """Run the stand-in study at `root`, `sleep` seconds an epoch."""
    workspace = Workspace.open(Path(root))
    config = study_config(trials=int(trials), sleep=float(sleep))
    zoo = untrained_zoo(PaperArchitecture("basic_to_simple"), MemberCounts(train=8, selection=2, test=3))
    dataset = load_dataset(DatasetConfig(name="mnist5k", train_images=512, selection_images=128))
    tracker = Tracker(workspace.tracking_uri, config.project, workspace.artifact_root)
    with connected(RayConfig(cpus=2)):
        run_search(config, workspace, TranslatorTask(zoo, dataset, StandIn), tracker)


if __name__ == "__main__":
    main(*sys.argv[1:])
