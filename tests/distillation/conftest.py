"""Small networks of distillation: seconds, not hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.config import (
    ClassifierConfig,
    DistillTrialConfig,
    FitConfig,
    ParaphraserConfig,
    ResNetOptions,
    TeacherConfig,
)
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.stages import Progress, Stages

FIT = FitConfig(epochs=2, batch_size=64, learning_rate=0.05, crop=0, schedule="cosine")


def resnet(width: int) -> ClassifierConfig:
    return ClassifierConfig(resnet=ResNetOptions(depth=8, width=width, stem_stride=2))


@pytest.fixture(scope="session")
def trial() -> DistillTrialConfig:
    """FT from a ResNet-8 of width 6 to one of width 4, two epochs each."""
    return DistillTrialConfig(
        teacher=TeacherConfig(network=resnet(6), training=FIT),
        paraphraser=ParaphraserConfig(training=FIT.model_copy(update={"epochs": 3, "schedule": "constant"})),
        student=resnet(4),
        training=FIT,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where teacher and paraphrasers of the session lie: trained once."""
    return tmp_path_factory.mktemp("distillation")


@pytest.fixture
def reports() -> list[Progress]:
    """What the stages have reported."""
    return []


@pytest.fixture
def stages(cache: Path, dataset: Dataset, reports: list[Progress]) -> Stages:
    return Stages(Cache(cache), dataset, report=reports.append)
