"""Configuration of one trial: translator, loss, augmentation, training. Search spaces sample paths of `TrialConfig`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from kt_ray.config.base import Frozen

Sides = Literal["source", "target", "both"]


class MixerOptions(Frozen):
    """The paper's MLP-Mixer over kernel tokens. `size` names a preset; the other fields override it."""

    size: Literal["paper", "small", "tiny"] = "paper"
    width: PositiveInt | None = Field(None, description="channels of a token; paper: 128")
    depth: PositiveInt | None = Field(None, description="mixer layers; paper: 24")
    token_hidden: PositiveInt | None = Field(None, description="hidden width of the token MLP; paper: 256")
    channel_hidden: PositiveInt | None = Field(None, description="hidden width of the channel MLP; paper: 512")
    dropout: float = Field(0.1, ge=0, lt=1)


class NeuronTransformerOptions(Frozen):
    """A transformer whose tokens are hidden units: incoming weights, bias, outgoing weights."""

    width: PositiveInt = 64
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NeuronTransformerOptions:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")
        return self


class TranslatorConfig(Frozen):
    """Architecture of the translator. `family` picks one; each family has its own options."""

    family: Literal["mixer", "neuron_transformer"] = "mixer"
    batch_norm: Literal["dropped", "folded"] = Field("folded", description="dropped is the paper's")
    output: Literal["direct", "residual"] = Field("residual", description="residual: over the pruned block")
    mixer: MixerOptions = MixerOptions()
    neuron_transformer: NeuronTransformerOptions = NeuronTransformerOptions()


class LossConfig(Frozen):
    """Weights of the loss terms; a term of weight 0 costs nothing."""

    weight_mse: float = Field(1.0, ge=0, description="mean over the tensors of their MSE (the paper's)")
    block_output: float = Field(0.0, ge=0, description="error of the block's outputs on stem activations")
    images: PositiveInt = Field(32, description="training images a step for terms that need activations")

    @model_validator(mode="after")
    def _some_term(self) -> LossConfig:
        if self.weight_mse == 0 and self.block_output == 0:
            raise ValueError("at least one loss weight must be above 0")
        return self


class MaskConfig(Frozen):
    """Each entry zeroed with `probability`, no rescale (the paper's random masking)."""

    probability: float = Field(0.0, ge=0, lt=1)
    sides: Sides = "source"


class NoiseConfig(Frozen):
    """Additive Gaussian noise; `relative` scales it by each tensor's standard deviation (the paper's is absolute)."""

    std: float = Field(0.0, ge=0)
    sides: Sides = "source"
    relative: bool = False


class AugmentationConfig(Frozen):
    """Augmentations of a batch of members and their probabilities or strengths."""

    mask: MaskConfig = MaskConfig()
    noise: NoiseConfig = NoiseConfig()
    channel_permutation: bool = Field(False, description="one permutation of source, target, stem and head channels")
    hidden_permutation: bool = Field(False, description="permute the hidden units of the source block")


class TrainingConfig(Frozen):
    """How a translator is trained."""

    epochs: PositiveInt = Field(20, description="reports; a report is a chance to prune")
    steps_per_epoch: PositiveInt | None = Field(None, description="one pass over the members if unset")
    batch_size: PositiveInt = Field(64, description="members a step")
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps with a rising learning rate")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")


class TrialConfig(Frozen):
    """One translator trained: everything but the zoo and the dataset."""

    seed: int = Field(0, ge=0)
    translator: TranslatorConfig = TranslatorConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()
