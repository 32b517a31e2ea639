"""An evaluation's pictures are written, and show what the table holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kt_ray.config import MixerOptions, TranslatorConfig
from kt_ray.data import Dataset
from kt_ray.translation.evaluation import evaluate
from kt_ray.translation.figures import accuracies, confusion, figures, members, save_figures
from kt_ray.translation.translator import build_translator
from kt_ray.zoo.members import Zoo


def test_figures(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)
    evaluation = evaluate(translator, random_zoo, dataset, images="selection")
    paths = save_figures(evaluation, tmp_path / "figures")
    assert [path.name for path in paths] == ["accuracy.png", "members.png", "confusion.png"]
    assert [f"{name}.png" for name in figures(evaluation)] == [path.name for path in paths]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    heights = [sum(bar.get_height() for bar in container) for container in accuracies(evaluation).axes[0].containers]
    assert heights == [evaluation.member_count] * 3
    imported = replace(evaluation, rows=tuple(row for row in evaluation.rows if row.name != "trained target"))
    shown_rows = [text.get_text() for text in accuracies(imported).axes[0].get_legend().get_texts()]
    assert shown_rows == ["translated", "pruned block"]
    assert len(members(imported).axes[0].collections) == 1
    shown = confusion(evaluation).axes[0].images[0].get_array()
    assert shown.shape == (10, 10)
    assert not shown.diagonal().any()


def test_confusion_counts_every_image(random_zoo: Zoo, dataset: Dataset) -> None:
    translator = build_translator(TranslatorConfig(mixer=MixerOptions(size="tiny")), random_zoo.architecture)
    evaluation = evaluate(translator, random_zoo, dataset, images="selection")
    counts = evaluation.confusion
    assert sum(map(sum, counts)) == evaluation.member_count * evaluation.image_count
    right = sum(counts[label][label] for label in range(10))
    assert abs(right / sum(map(sum, counts)) - evaluation.row("translated").mean) < 1e-6
