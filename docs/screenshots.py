"""The pictures in this directory, of a study that has run: `python -m docs.screenshots WORKSPACE STUDY`.

Needs Chromium and ChromeDriver (Debian: `apt-get install chromium-driver`).
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from kt_ray.studies.workspace import Workspace
from kt_ray.tracking.tracker import Tracker
from kt_ray.tracking.ui import start, stop
from tests.tracking.browser import Browser, browser
from tests.tracking.pages import Pages
from tests.tracking.servers import free_port

HERE = Path(__file__).parent
COLOURS = 128  # of a palette: a page then takes a third of the bytes


def picture(window: Browser, name: str) -> None:
    """Save what the window shows as `docs/NAME.png`, once its animations are over."""
    time.sleep(5)
    path = HERE / f"{name}.png"
    window.screenshot(path)
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    sys.stdout.write(f"{path}: {image.width}×{image.height}, {path.stat().st_size / 1024:.0f} KiB\n")


def main(root: Path, study: str, project: str = "kt_ray", model: str = "kt-translator") -> None:
    """Open the UI on the workspace at `root` and save its pages."""
    workspace = Workspace.open(root)
    tracker = Tracker(workspace.tracking_uri, project, workspace.artifact_root)
    client, experiment = tracker.client, tracker.experiment_id
    parent = client.search_runs([experiment], f"tags.`kt_ray.kind` = 'study' and tags.`kt_ray.study` = '{study}'")[0]
    trials = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    best = max(trials, key=lambda run: run.data.metrics.get("accuracy_mean", 0.0))
    version = int(client.get_model_version_by_alias(model, "champion").version)
    port = free_port()
    server = start(workspace.tracking_uri, workspace.artifact_root, port=port)
    try:
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile) / "profile", 1500, 950) as window:
            pages = Pages(window, f"http://127.0.0.1:{port}", experiment)
            pages.trials(study)
            picture(window, "mlflow-trials")
            pages.run(parent.info.run_id, "best trial", "all trials", "best_")
            picture(window, "mlflow-study")
            pages.metrics(best.info.run_id, "loss", "accuracy_mean")
            picture(window, "mlflow-metrics")
            pages.version(model, version)
            picture(window, "mlflow-champion")
    finally:
        stop(server)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
