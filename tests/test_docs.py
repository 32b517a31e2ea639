"""Documents: links lead somewhere, figures are the result files', the README is short, the tutorial runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
GENERATED = "reference/"  # of study files, written when the site is made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and GENERATED not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_readme_is_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_figures_are_those_of_the_result_files() -> None:
    command = [sys.executable, "docs/make_results.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode == 0


def test_the_reference_names_every_key(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_reference
    finally:
        sys.path.pop(0)
    make_reference.write(tmp_path)
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    for key in ("search.objectives.metric", "trial.translator.family", "zoo.recipe.source.epochs", "storage.study"):
        assert f"`{key}`" in text


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "small.safetensors").is_file()
