"""Configuration as frozen pydantic models. Light to import: no torch, ray or mlflow."""

from kt_ray.config.base import Frozen, parse_overrides, read_source, validate, validate_source
from kt_ray.config.distillation import (
    ATOptions,
    ClassifierConfig,
    DistillConfig,
    DistillSearchConfig,
    DistillTrialConfig,
    FitConfig,
    FTOptions,
    KDOptions,
    LayerOptions,
    MethodConfig,
    ParaphraserConfig,
    ResNetOptions,
    TeacherConfig,
)
from kt_ray.config.network import NetworkChoice, NetworkConfig, PairChoice, PairName
from kt_ray.config.source import Source, set_path
from kt_ray.config.study import (
    Distribution,
    Objective,
    PrunerConfig,
    RayConfig,
    SamplerConfig,
    SearchConfig,
    StorageConfig,
    StudyConfig,
    TrialResources,
)
from kt_ray.config.translator import (
    AxialTransformerOptions,
    GraphOptions,
    MixerOptions,
    MLPOptions,
    NeuronTransformerOptions,
    ProjectionOptions,
    RefinementOptions,
    TranslatorConfig,
)
from kt_ray.config.trial import (
    LOGIT_TERMS,
    OUTPUT_TERMS,
    STRUCTURE_TERMS,
    AugmentationConfig,
    LossConfig,
    TrainingConfig,
    TrialConfig,
)
from kt_ray.config.zoo import (
    SPLITS,
    ActorConfig,
    DatasetConfig,
    DatasetName,
    FolderOptions,
    MemberCounts,
    NpzOptions,
    PhaseConfig,
    RecipeConfig,
    Split,
    ZooConfig,
)
