"""Configuration of a translator: its family, the block it starts from, refinement."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from kt_ray.config.base import Frozen, check_registered

FAMILIES = ("mixer", "mlp", "neuron_transformer", "axial_transformer", "graph")


class MixerOptions(Frozen):
    """The paper's MLP-Mixer over kernel tokens. `size` names a preset; the other fields override it."""

    size: Literal["paper", "small", "tiny"] = "paper"
    width: PositiveInt | None = Field(None, description="channels of a token; paper: 128")
    depth: PositiveInt | None = Field(None, description="mixer layers; paper: 24")
    token_hidden: PositiveInt | None = Field(None, description="hidden width of the token MLP; paper: 256")
    channel_hidden: PositiveInt | None = Field(None, description="hidden width of the channel MLP; paper: 512")
    dropout: float = Field(0.1, ge=0, lt=1)


class MLPOptions(Frozen):
    """A plain residual MLP over all parameters at once."""

    width: PositiveInt = 256
    depth: PositiveInt = 3
    dropout: float = Field(0.0, ge=0, lt=1)


class TransformerOptions(Frozen):
    """Sizes of a transformer."""

    width: PositiveInt = 64
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerOptions:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")
        return self


class NeuronTransformerOptions(TransformerOptions):
    """A transformer whose tokens are hidden units: incoming weights, bias, outgoing weights."""


class AxialTransformerOptions(TransformerOptions):
    """A transformer whose tokens are kernel pairs, with attention along hidden units and along channels."""


class GraphOptions(Frozen):
    """Message passing on the graph whose nodes are hidden units and channels and whose edges are kernel pairs."""

    width: PositiveInt = 64
    depth: PositiveInt = 4
    dropout: float = Field(0.0, ge=0, lt=1)


class RefinementOptions(Frozen):
    """Optimiser steps on the family's block: they run the network on images, the probes, that the translator carries.

    The probes are part of the translator: translating needs no data.
    """

    steps: int = Field(0, ge=0, description="0: no refinement, and the network is never run")
    method: Literal["adam", "newton", "gauss_newton"] = Field(
        "adam",
        description="newton: Levenberg-Marquardt by conjugate gradients, whose steps are not trained through; "
        "gauss_newton: the Jacobian of the logits written out, for blocks of two convolutions",
    )
    products: PositiveInt = Field(8, description="products with the curvature in a step of newton")
    rows: PositiveInt = Field(4, description="combinations of each image's logits in the curvature of gauss_newton")
    images: Literal["strokes", "mixture", "projection"] = Field(
        "strokes",
        description="how probes begin: drawn from no data, or from a mixture fitted to the training images; "
        "projection: none of its own, but those of the projected base",
    )
    trained: bool = Field(
        True, description="false: the family is trained without the steps, which keep the options that they begin with"
    )
    predictions: float = Field(
        0.0, ge=0, le=1, description="share of the steps, the last ones, that match the source's predictions too"
    )
    starts: PositiveInt = Field(1, description="blocks to begin at; the best after an eighth of the steps goes on")
    probes: PositiveInt = Field(24, description="images in a set")
    probe_sets: PositiveInt = Field(8, description="sets of them, which the steps take in turn")
    width: PositiveInt = 32
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> RefinementOptions:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={self.width}, heads={self.heads}")
        if self.method == "newton" and self.trained:
            raise ValueError("method newton is not trained through, got trained=true; set trained: false")
        return self


class ProjectionOptions(Frozen):
    """Least squares of `base: projected`: it runs the network on images, the probes, that the translator carries."""

    probes: PositiveInt = Field(64, description="images")
    images: Literal["strokes", "mixture", "written"] = Field(
        "mixture",
        description="how probes begin: drawn from no data, or from a mixture fitted to the training images; written: "
        "none are carried, a learned network writes the block's inputs from the stem's parameters",
    )
    learned: bool = Field(False, description="true: the probes are trained with the family, through the least squares")

    @model_validator(mode="after")
    def _written_inputs_are_learned(self) -> ProjectionOptions:
        if self.images == "written" and not self.learned:
            raise ValueError("images written comes from a learned network, got learned=false; set learned: true")
        return self


class TranslatorConfig(Frozen):
    """Architecture of the translator. `family` picks one; each family has its own options."""

    family: str = Field("mixer", description=f"{', '.join(FAMILIES)}, or a registered one")
    options: dict[str, Any] = Field(default_factory=dict, description="of a registered family")
    batch_norm: Literal["dropped", "folded"] = Field("folded", description="dropped is the paper's")
    statistics: bool = Field(False, description="BN's mean and deviation of units and channels as further features")
    context: Literal["block", "network"] = Field("block", description="network: stem and head are features too")
    canonical: bool = Field(
        False,
        description="source units in order of importance, their ReLU scales balanced; with BN dropped these sit in "
        "BN and stay",
    )
    output: Literal["direct", "residual"] = Field("residual", description="residual: over a one-shot block")
    base: Literal["pruned", "merged", "transported", "projected"] = Field(
        "pruned", description="the one-shot block of a residual output; projected: least squares on probes"
    )
    projection: ProjectionOptions = ProjectionOptions()
    mixer: MixerOptions = MixerOptions()
    mlp: MLPOptions = MLPOptions()
    neuron_transformer: NeuronTransformerOptions = NeuronTransformerOptions()
    axial_transformer: AxialTransformerOptions = AxialTransformerOptions()
    graph: GraphOptions = GraphOptions()
    refinement: RefinementOptions = RefinementOptions()

    @model_validator(mode="after")
    def _shared_probes_exist(self) -> TranslatorConfig:
        if self.refinement.steps and self.refinement.images == "projection" and not self.projects:
            raise ValueError(
                "refinement.images projection takes the probes of base projected with output residual, got "
                f"base={self.base}, output={self.output}"
            )
        return self

    @model_validator(mode="after")
    def _known_family(self) -> TranslatorConfig:
        if self.family not in FAMILIES:
            check_registered("family", self.family, self.options)
        return self

    @property
    def of_family(self) -> Any:
        return getattr(self, self.family) if self.family in FAMILIES else self.options

    @property
    def projects(self) -> bool:
        """True if the one-shot block is projected: residual output over it."""
        return self.output == "residual" and self.base == "projected"
