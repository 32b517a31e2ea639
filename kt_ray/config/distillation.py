"""The distillation file: teacher, paraphraser, student, method, training and, where it searches, a space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from kt_ray.config.base import Frozen
from kt_ray.config.code import CodeFile
from kt_ray.config.network import NetworkConfig, PairName
from kt_ray.config.study import MODEL_NAME, PRINTABLE, Distribution, Objective, RayConfig, SearchConfig, StorageConfig
from kt_ray.config.zoo import FILE_NAME, FILE_NAME_SAYS, DatasetConfig

# What a student's trial reports, with the terms of its method. The last two are what the trial has cost so far.
METRICS = ("accuracy", "loss", "cross_entropy", "seconds", "parameters", "trial_seconds", "device_hours")
MethodName = Literal["none", "kd", "at", "ft", "ft+kd"]


class ResNetOptions(Frozen):
    """A CIFAR ResNet (arXiv 1512.03385, section 4.2): three stages of `width`, 2·`width`, 4·`width` channels."""

    depth: PositiveInt = Field(20, description="6n + 2 layers: 8, 14, 20, 32, 56, 110")
    width: PositiveInt = Field(16, description="channels of the first stage")
    stem_stride: Literal[1, 2, 4] = Field(1, description="2 halves every map, 4 quarters it: for small machines")
    hidden: float = Field(1.0, gt=0, le=1, description="hidden units of a residual block over its output channels")

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        if value < 8 or (value - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n of at least 1 (8, 14, 20, 32, 56, 110), got {value}")
        return value


class ClassifierConfig(Frozen):
    """A teacher's or student's network. `source` and `target` are Knowledge Translation's, of `pair`."""

    family: Literal["resnet", "source", "target"] = "resnet"
    resnet: ResNetOptions = ResNetOptions()
    pair: PairName = "basic_to_simple"
    network: NetworkConfig = Field(NetworkConfig(), description="widths of `source` and `target`")


class FitConfig(Frozen):
    """Options of a fit by SGD; the defaults are Factor Transfer's for CIFAR (its authors' code)."""

    epochs: PositiveInt = 164
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="shares of the epochs where `steps` decays")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps with a rising learning rate")
    crop: int = Field(4, ge=0, description="pixels of zero padding for the random crop; 0: none")
    flip: bool = Field(True, description="random horizontal flip")

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        wrong = [share for share in self.milestones if not 0 < share < 1]
        if wrong:
            raise ValueError(f"milestones are shares of the epochs between 0 and 1, got {wrong}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, got momentum=0")
        return self


class TeacherConfig(Frozen):
    """The large network: trained here, or read from the safetensors file `checkpoint`."""

    network: ClassifierConfig = ClassifierConfig(resnet=ResNetOptions(depth=56))
    training: FitConfig = FitConfig()
    seed: int = Field(0, ge=0)
    checkpoint: str | None = Field(None, description="safetensors file of its state dict, where the study is started")


class ParaphraserConfig(Frozen):
    """The autoencoder of the teacher's feature maps whose code are the teacher factors (arXiv 1802.04977)."""

    rate: PositiveFloat = Field(0.5, description="k: factor channels over the teacher's channels")
    training: FitConfig = FitConfig(epochs=6, schedule="constant")
    seed: int = Field(0, ge=0)


def _layer_names(value: object) -> object:
    """`"stage2, stage3"` as `("stage2", "stage3")`, so that a search space can list sets of layers."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


Layers = Annotated[tuple[str, ...], BeforeValidator(_layer_names)]


class KDOptions(Frozen):
    """Knowledge distillation (Hinton 2015): (1 − alpha) · CE + alpha · T² · KL(teacher ‖ student) at temperature T."""

    temperature: PositiveFloat = 4.0
    alpha: float = Field(0.9, ge=0, le=1)


class LayerOptions(Frozen):
    """Layers whose feature maps are compared: `name` in both networks, or `teacher_name:student_name`."""

    layers: Layers

    @field_validator("layers")
    @classmethod
    def _some_layer(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one layer")
        if len(set(value)) < len(value):
            raise ValueError(f"each layer once, got {', '.join(value)}")
        return value

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """The teacher's side of `layers`."""
        return tuple(name.split(":")[0] for name in self.layers)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """The student's side of `layers`."""
        return tuple(name.split(":")[-1] for name in self.layers)


class ATOptions(LayerOptions):
    """Attention transfer (Zagoruyko 2017): CE + beta · Σ over layers of the mean squared difference of the maps."""

    beta: float = Field(1000.0, ge=0)
    layers: Layers = ("stage1", "stage2", "stage3")


class FTOptions(LayerOptions):
    """Factor transfer: CE + beta · Σ over layers of mean |F_student − F_teacher|^p of the normalised factors."""

    beta: float = Field(500.0, ge=0)
    p: PositiveFloat = 1.0
    layers: Layers = Field(("stage3",), description="the last group of layers only in the authors' code")
    translator_learning_rate: PositiveFloat | None = Field(None, description="the student's if unset")


class MethodConfig(Frozen):
    """The source that the student learns from besides the labels: `name` chooses it, each has its own options."""

    name: MethodName = "ft"
    kd: KDOptions = KDOptions()
    at: ATOptions = ATOptions()
    ft: FTOptions = FTOptions()


class DistillTrialConfig(Frozen):
    """One student trained: everything but the dataset. A search samples paths of this."""

    seed: int = Field(0, ge=0)
    teacher: TeacherConfig = TeacherConfig()
    paraphraser: ParaphraserConfig = ParaphraserConfig()
    student: ClassifierConfig = ClassifierConfig()
    method: MethodConfig = MethodConfig()
    training: FitConfig = FitConfig()


class DistillSearchConfig(SearchConfig):
    """As of a study, but a student has one accuracy: on the selection images."""

    objectives: tuple[Objective, ...] = (Objective(metric="accuracy"),)


class DistillConfig(DistillTrialConfig):
    """A distillation file. Its defaults are Factor Transfer's example: ResNet-56 → ResNet-20 on CIFAR-10."""

    kind: Literal["distillation"] = Field("distillation", description="need not be given where there is a `student`")
    name: str = Field(pattern=FILE_NAME, max_length=100, description=FILE_NAME_SAYS)
    project: str = Field("kt_ray", pattern=PRINTABLE, max_length=250, description="the MLflow experiment")
    model_name: str = Field(
        "kt-student", pattern=MODEL_NAME, max_length=250, description="the registered model of the student"
    )
    description: str = ""
    code: tuple[CodeFile, ...] = Field((), description="Python files that register what is used below")
    dataset: DatasetConfig = DatasetConfig(name="cifar10")
    space: dict[str, Distribution] = Field(default_factory=dict, description="dotted paths; no search if empty")
    search: DistillSearchConfig = DistillSearchConfig()
    ray: RayConfig = RayConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _some_selection_images(self) -> DistillConfig:
        compared = {objective.metric for objective in self.search.objectives}
        if self.space and "accuracy" in compared and not self.dataset.selection_images:
            raise ValueError(
                "dataset.selection_images: must be above 0, as trials are compared by their accuracy on these"
            )
        return self

    @property
    def trial(self) -> DistillTrialConfig:
        """The part that a search samples."""
        return DistillTrialConfig.model_validate(
            {name: getattr(self, name) for name in DistillTrialConfig.model_fields}
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What every trial reports: terms of the method too, if all methods that are searched have them."""
        searched = self.space.get("method.name")
        methods = (searched.categorical if searched else None) or (self.method.name,)
        terms = set.intersection(*({*str(method).split("+")} - {"none"} for method in methods))
        return (*METRICS, *sorted(terms))
