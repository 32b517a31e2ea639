"""Configuration of one trial: loss, augmentation, training. Search spaces sample paths of `TrialConfig`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from kt_ray.config.base import Frozen, check_registered
from kt_ray.config.translator import TranslatorConfig

# What a trial reports; `network_accuracy`, of networks with all blocks translated, only where these are several;
# `translation_cost` is the time of translating a network over that of running the source network on `BASELINE_IMAGES`
# images. The last two are what the trial has cost so far.
METRICS = (
    "accuracy_mean",
    "accuracy_min",
    "accuracy_max",
    "network_accuracy",
    "loss",
    "translation_cost",
    "seconds",
    "parameters",
    "trial_seconds",
    "device_hours",
)
BASELINE_IMAGES = 64
Sides = Literal["source", "target", "both"]
STRUCTURE_TERMS = ("weight_mse", "normalised_mse", "aligned_mse")
OUTPUT_TERMS = ("block_output", "head_input")
LOGIT_TERMS = ("kl", "cross_entropy")


class Registered(Frozen):
    """A registered loss term or augmentation: its weight or strength, and its options."""

    weight: float = Field(1.0, ge=0, description="0 leaves it out")
    options: dict[str, Any] = Field(default_factory=dict)


class LossConfig(Frozen):
    """Weights of the loss terms; a term of weight 0 costs nothing.

    `structure_until`, `outputs_from` and `logits_from` are shares of the training steps: the terms on weights fade out
    linearly until the first, `block_output` and `head_input` begin at the second, those on logits at the third.
    """

    weight_mse: float = Field(1.0, ge=0, description="mean over the tensors of their MSE (the paper's)")
    normalised_mse: float = Field(0.0, ge=0, description="the same, each tensor's MSE over its variance")
    aligned_mse: float = Field(0.0, ge=0, description="normalised MSE at the best order of the target's units")
    block_output: float = Field(0.0, ge=0, description="error of the block's outputs on stem activations")
    head_input: float = Field(0.0, ge=0, description="the same, seen through the head's first convolution and BN")
    kl: float = Field(0.0, ge=0, description="KL from the source's predictions, through the frozen head")
    cross_entropy: float = Field(0.0, ge=0, description="cross-entropy with the labels, through the frozen head")
    terms: dict[str, Registered] = Field(
        default_factory=dict, description="registered terms, which count as those on logits do"
    )
    images: PositiveInt = Field(
        32, description="training images a step for terms that need activations, at every position the head reads"
    )
    structure_until: float = Field(1.0, gt=0, le=1, description="1: the terms on weights never fade")
    outputs_from: float = Field(0.0, ge=0, lt=1)
    logits_from: float = Field(0.0, ge=0, lt=1)

    @property
    def begins(self) -> dict[str, float]:
        """`outputs_from` and `logits_from`, of those whose terms count at all."""
        return {
            name: getattr(self, name)
            for name, terms in (("outputs_from", OUTPUT_TERMS), ("logits_from", LOGIT_TERMS))
            if any(getattr(self, term) for term in terms) or (name == "logits_from" and self.terms)
        }

    @model_validator(mode="after")
    def _known_terms(self) -> LossConfig:
        for name, term in self.terms.items():
            check_registered("loss", name, term.options)
        return self

    @model_validator(mode="after")
    def _some_term_at_every_step(self) -> LossConfig:
        structure = any(getattr(self, name) for name in STRUCTURE_TERMS)
        begins = self.begins
        if not structure and not begins:
            raise ValueError("at least one loss weight must be above 0")
        if not begins:
            if self.structure_until < 1:
                raise ValueError(
                    f"no loss is left after structure_until={self.structure_until}; add a term or make it 1"
                )
            return self
        first = min(begins, key=lambda name: begins[name])
        if begins[first] > 0 and not (structure and self.structure_until >= begins[first]):
            raise ValueError(f"some steps before {first}={begins[first]} have no loss; add a term or make it 0")
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
    kernel_mask: MaskConfig = Field(MaskConfig(), description="whole kernels zeroed")
    noise: NoiseConfig = NoiseConfig()
    channel_permutation: bool = Field(False, description="one permutation of source, target, stem and head channels")
    hidden_permutation: bool = Field(False, description="permute the hidden units of the source block")
    rescale: float = Field(0.0, ge=0, description="deviation of the log of a positive scale of each hidden ReLU")
    flips: bool = Field(False, description="flip kernels; the written block is flipped back")
    transposes: bool = Field(False, description="transpose kernels; the written block is transposed back")
    swap_units: float = Field(0.0, ge=0, lt=1, description="probability of a hidden unit from another member")
    vary: float = Field(
        0.0,
        ge=0,
        description="relative noise that makes new source blocks, none of which has a target: a term on outputs or "
        "logits must count from the first step, and terms on weights do not count; a file may not set both, and where "
        "a search draws vary, its trials above 0 leave these terms out",
    )
    mixup: float = Field(0.0, ge=0, le=0.5, description="largest share of another member, its units aligned")
    others: dict[str, Registered] = Field(default_factory=dict, description="registered augmentations, in this order")
    snapshots: bool = Field(True, description="use sources of earlier epochs where the loss needs no target")

    @model_validator(mode="after")
    def _known_augmentations(self) -> AugmentationConfig:
        for name, other in self.others.items():
            check_registered("augmentation", name, other.options)
        return self


class TrainingConfig(Frozen):
    """Options of a translator's training."""

    epochs: PositiveInt = Field(20, description="reports; a report is a chance to prune")
    steps_per_epoch: PositiveInt | None = Field(
        None, description="members / batch_size if unset, rounded up; a pass leaves out what fills no batch"
    )
    batch_size: PositiveInt = Field(64, description="members a step; all where there are fewer")
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    probe_rate: PositiveFloat = Field(
        1.0, description="factor of the learning rate for learned probes, and for the options of gauss_newton's steps"
    )
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps with a rising learning rate")
    clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0: no clipping")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights that are evaluated; 0: none")
    patience: PositiveInt | None = Field(
        None, description="stop after so many reports without a better mean accuracy; the best report is what counts"
    )


class TrialConfig(Frozen):
    """One translator trained: everything but the zoo and the dataset."""

    seed: int = Field(0, ge=0)
    translator: TranslatorConfig = TranslatorConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _new_blocks_have_no_target(self) -> TrialConfig:
        loss, vary = self.loss, self.augmentation.vary
        if (vary or self.augmentation.swap_units) and not loss.begins:
            raise ValueError(
                "augmentation.swap_units and augmentation.vary make source blocks that have no target; add a loss on "
                "outputs or logits, or set them to 0"
            )
        if vary and min(loss.begins.values()) > 0:
            begins = ", ".join(f"{name}={value}" for name, value in loss.begins.items())
            raise ValueError(
                "augmentation.vary leaves no block its target, so a term on outputs or logits must count from the "
                f"first step; set outputs_from or logits_from to 0, got vary={vary}, {begins}"
            )
        return self

    @model_validator(mode="after")
    def _no_terms_on_weights_of_varied_blocks(self) -> TrialConfig:
        """Only terms that a person set are refused: not defaults, nor dumps, which set every field and which a search
        makes its trials of."""
        loss, vary = self.loss, self.augmentation.vary
        dump = loss.model_fields_set == LossConfig.model_fields.keys()
        terms = [name for name in STRUCTURE_TERMS if name in loss.model_fields_set and getattr(loss, name)]
        if vary and terms and not dump:
            given = ", ".join(f"{name}={getattr(loss, name)}" for name in terms)
            raise ValueError(
                "augmentation.vary leaves no block its target, so terms on weights never count; set them or vary to 0, "
                f"got vary={vary}, {given}"
            )
        return self

    @model_validator(mode="after")
    def _no_flips_of_networks_that_run(self) -> TrialConfig:
        if not self.augmentation.flips and not self.augmentation.transposes:
            return self
        if self.translator.refinement.steps:
            raise ValueError("augmentation flips and transposes only the block, so refinement.steps must be 0 with it")
        if self.translator.projects:
            raise ValueError(
                "augmentation flips and transposes only the block, so translator.base must not be projected with it"
            )
        return self
