"""The interface of translators, whatever their family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.errors import CheckpointError, ConfigError
from kt_ray.networks import AnyArchitecture, Architecture, State, stacked
from kt_ray.registry import register
from kt_ray.translation.bases import BASES
from kt_ray.translation.importance import first, importance_order
from kt_ray.translation.probe_images import Mixture
from kt_ray.translation.projector import Projected, Projector
from kt_ray.translation.refinement import Refiner
from kt_ray.translation.support import check_supported
from kt_ray.translation.units import Units, balanced, features, read, take, target_layout, write

SMALL = 0.03  # scale of a residual output before training


class Translator(nn.Module):
    """Source blocks to target blocks, many at once.

    `body` is the family's network, from `Units` to `Units`. With `output="residual"` (as neural functionals and
    neural graphs do), its output, times a small learned scale for each tensor, is added to a one-shot block, and
    the source's units come to it in order of importance, so that its first target units are the kept ones.
    Refinement, where there is any, goes on from there.
    """

    def __init__(self, body: nn.Module, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.body = body
        self.config = config
        self.architecture = architecture
        self.layout = target_layout(architecture)
        self.target_hidden = self.layout.hidden
        if config.output == "residual":
            self.scale = nn.Parameter(torch.full((self.layout.kernels + 2,), SMALL))
        self.refiner = Refiner(config, architecture) if config.refinement.steps else None
        self.projector = Projector(config, architecture) if config.projects else None

    @property
    def needs_network(self) -> bool:
        """True if translating a block needs the stem and head around it."""
        return self.config.context == "network" or self.runs_network

    @property
    def runs_network(self) -> bool:
        """True if translating a block runs the network on probes."""
        return self.refiner is not None or self.projector is not None

    def draw_probes(self, images: Tensor | Mixture, generator: torch.Generator) -> None:
        """Draw the probes of refinement and of the projected base, those that are drawn from `images` from these.

        `images` are uint8 [N, C, H, W], or the mixture that was fitted to them.
        """
        for part in (self.refiner, self.projector):
            if part is not None:
                part.draw_probes(images, generator)

    def for_architecture(self, architecture: Architecture) -> Translator:
        """Return a translator for blocks of `architecture` that has these very parameters; this one if it is for them.

        Training either trains both. Raises CheckpointError if the pair is another, or a parameter's shape
        depends on what differs: widths in most families, the image shape with refinement.
        """
        ours = self.architecture
        if architecture == ours:
            return self
        if architecture.pair != ours.pair:
            raise CheckpointError(f"the translator is for {ours.pair}, not for {architecture.pair}; choose another")
        with torch.random.fork_rng(devices=[]):
            translator = build_translator(self.config, architecture)
        weights = self.state_dict(keep_vars=True)
        for name, value in translator.state_dict().items():
            if value.shape != weights[name].shape:
                raise CheckpointError(
                    f"the translator is for networks of {ours.network} on images {ours.image_shape}, not of "
                    f"{architecture.network} on images {architecture.image_shape}: its {name} depends on them; train "
                    "one for these (the families axial_transformer and graph serve any width)"
                )
        translator.load_state_dict(weights, assign=True)
        translator.to(next(self.parameters()).device)  # what is no part of the state
        return translator.train(self.training)

    def read(self, members: State) -> State:
        """Return the part of a stack of members (`Zoo.parameters`) that `forward` reads."""
        source = stacked.part(members, "source")
        if not self.needs_network:
            return source
        return source | stacked.surroundings(members)

    def forward(self, source: State) -> State:
        """Translate a stack of source blocks [B, …], BN buffers included, to target blocks [B, …].

        A translator that `needs_network` wants `stem.…` and `head.…` in `source` too; others ignore them.
        """
        if self.needs_network and not any(name.startswith("stem.") for name in source):
            raise ValueError("this translator reads stem and head too: give stem.… and head.… beside the block")
        plain = read(source, self.architecture, self.config.batch_norm)
        unit, channel = features(source, self.config, self.architecture)
        refined = self.refiner is not None and (self.config.refinement.trained or not self.training)
        starts = self.config.refinement.starts if refined else 1
        around, projected = None, []
        if self.projector is not None:
            around = self.projector.surroundings(source)
            projected = self.projector(source, around, starts)
        several = self.refiner is not None and self.config.refinement.starts > 1
        if self.config.output == "residual" or self.config.canonical or several:
            order = importance_order(source, self.architecture, self.config.batch_norm)
            if projected and projected[0].chosen is not None:
                order = first(order, projected[0].chosen)
            plain, unit = plain.take(order), take(unit, order)
        if self.config.canonical:
            plain = balanced(plain)
        edges = plain.edges
        if projected and projected[0].chosen is not None:
            edges, unit, channel = _beside_base(edges, unit, channel, projected[0], order)
        seen = Units(edges, torch.cat([plain.unit, unit], dim=-1), torch.cat([plain.channel, channel], dim=-1))
        written: Units = self.body(seen)
        if self.config.output == "residual":
            base = projected[0].units if projected else self._one_shot(plain)
            written = Units(
                base.edges + self.scale[:-2, None] * written.edges,
                base.unit + self.scale[-2] * written.unit,
                base.channel + self.scale[-1] * written.channel,
            )
        if self.refiner is not None and refined:
            further = [start.units for start in projected[1:]] if projected else self._further_starts(plain, starts)
            written = self.refiner([written, *further], seen, source, around)
        return write(written, self.layout) | self.architecture.layouts()[1].copied_of(source)

    def _one_shot(self, plain: Units) -> Units:
        return BASES[self.config.base](plain, self.layout, self.target_hidden)

    def _further_starts(self, plain: Units, starts: int) -> list[Units]:
        """Return one-shot blocks of other units than the most important ones: start k of S keeps those from k·H/S on.

        There are none if a one-shot block keeps all units.
        """
        hidden = plain.edges.shape[1]
        chooses = self.layout.projects_itself and self.target_hidden < hidden
        starts = starts if chooses else 1
        orders = [torch.arange(hidden, device=plain.edges.device).roll(-k * hidden // starts) for k in range(1, starts)]
        return [self._one_shot(plain.take(order.expand(len(plain.edges), -1))) for order in orders]


def _beside_base(
    edges: Tensor, unit: Tensor, channel: Tensor, base: Projected, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges and features of source units, the chosen ones first, with what the projected `base` makes of them beside.

    Edges of the base are zero for the units that it leaves out; its activity and errors are further features.
    """
    missing = edges.shape[1] - base.units.edges.shape[1]
    kept = torch.nn.functional.pad(base.units.edges, (0, 0, 0, 0, 0, 0, 0, missing))
    activity = take(base.activity, order)
    return (
        torch.cat([edges, kept], dim=3),
        torch.cat([unit, activity], dim=-1),
        torch.cat([channel, base.errors], dim=-1),
    )


def build_translator(config: TranslatorConfig, architecture: AnyArchitecture) -> Translator:
    """Return a fresh translator for blocks of `architecture`; its values come from torch's global generator.

    Of several sites, it is for the blocks at the first; `for_architecture` makes one for another. Raises ConfigError
    if these blocks do not support what `config` asks for, or one translator cannot serve all sites.
    """
    views = architecture.views()
    for view in views:
        check_supported(config, view)
    body = register.family.make(config.family, config.of_family, config, views[0])
    translator = Translator(body, config, views[0])
    for view, site in zip(views[1:], architecture.sites[1:], strict=True):
        try:
            translator.for_architecture(view)
        except CheckpointError:
            raise ConfigError(
                f"translator.family: {config.family} cannot write the blocks at {architecture.sites[0]} and {site} "
                "with the same parameters, as their widths differ; choose axial_transformer or graph, or name one "
                "block in pair.site"
            ) from None
    return translator
