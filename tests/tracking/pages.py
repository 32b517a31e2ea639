"""Pages of the MLflow UI, opened in a browser and waited for until what they are for is seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from kt_ray.tracking.view import run_page, version_page, view_page
from tests.tracking.browser import Browser

COLUMNS = "return [...document.querySelectorAll('[role=columnheader]')].map(e => e.innerText)"
EXPANDER = "[data-component-id*=runnamecellrenderer]"
# plotly draws a chart as an SVG inside this class; parallel coordinates are lines on a canvas under named axes.
CHARTS = "return [...document.querySelectorAll('.js-plotly-plot')].filter(e => e.offsetParent).length"
AXES = "return [...document.querySelectorAll('.parcoords .axis-title')].map(e => e.textContent)"


class Pages:
    """The UI of the server at `address` on the experiment `experiment`."""

    def __init__(self, browser: Browser, address: str, experiment: str) -> None:
        self.browser = browser
        self.root = address
        self.address = f"{address}/#"
        self.experiment = f"{self.address}/experiments/{experiment}"
        self.number = experiment
        closed = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
        browser.remember(address, **closed)

    def trials(self, study: str) -> list[str]:
        """The saved view of the study's trials; the names of its columns."""
        self.browser.open(f"{self.root}/{view_page(self.number, study)}")
        self.browser.wait_for("trial ", "Metrics")
        return list(self.browser.run(COLUMNS))

    def runs(self, study: str) -> str:
        """The table of runs with the study's trials unfolded; its text."""
        self.browser.open(f"{self.experiment}/runs")
        text = self.browser.wait_for(study, "matching runs")
        assert "trial " not in text  # children are folded under their parent
        self.browser.click(EXPANDER)
        return self.browser.wait_for("trial ")

    def run(self, run_id: str, *words: str) -> str:
        """A run's first page; its text, once it has `words`."""
        self.browser.open(f"{self.root}/{run_page(self.number, run_id)}")
        return self.browser.wait_for(*words)

    def metrics(self, run_id: str, *metrics: str) -> int:
        """The charts of a run's metrics; how many are drawn."""
        self.browser.open(f"{self.root}/{run_page(self.number, run_id, 'model-metrics')}")
        self.browser.wait_for(*metrics)
        return int(self.browser.wait_until(CHARTS))

    def compare(self, run_ids: Sequence[str]) -> list[str]:
        """Parallel coordinates over runs; the names of the axes."""
        runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([self.number]))
        self.browser.open(f"{self.address}/compare-runs?runs={runs}&experiments={experiments}")
        self.browser.wait_for(f"Comparing {len(run_ids)} Runs", "Parallel Coordinates Plot")
        return list(self.browser.wait_until(AXES + ".length ? " + AXES.removeprefix("return ") + " : null"))

    def model(self, name: str) -> str:
        """The registered model; its text."""
        self.browser.open(f"{self.address}/models/{name}")
        return self.browser.wait_for("Version 1")

    def version(self, name: str, version: int) -> str:
        """One version of the registered model; its text."""
        self.browser.open(f"{self.root}/{version_page(name, version)}")
        return self.browser.wait_for("Source Run", "Schema")

    def artifact(self, run_id: str, name: str) -> str:
        """An HTML file of a run in the viewer; the page's text."""
        self.browser.open(f"{self.experiment}/runs/{run_id}/artifacts/{name}")
        self.browser.wait_until("return document.querySelectorAll('iframe').length")
        return self.browser.wait_for(name.split("/")[-1])
