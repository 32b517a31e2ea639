"""The projected block: hidden units chosen and the last layer fitted by least squares, on images a translator carries.

At translation the probes are run through the user's own stem, block and head, and no data is needed. The block's last
layer is fitted to what the source adds to its input, at the positions that the head reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kt_ray.config import TranslatorConfig
from kt_ray.networks import READ_STRIDE, Architecture, State
from kt_ray.translation.block_runner import Surroundings, stem_activations, surround
from kt_ray.translation.divergences import kl
from kt_ray.translation.input_writer import InputWriter
from kt_ray.translation.probe_images import Mixture, mixture, strokes, to_images, to_parameters
from kt_ray.translation.projected import Fits, absorb_biases, normal_equations, project
from kt_ray.translation.units import Layout, Units, layouts, pad, target_layout, write

SHORTLIST = 4  # choices of units, those of the least squared error, whose predictions are compared
SAMPLES = 500  # of what hidden units read, on which kernels learn to do without biases


class Projector(nn.Module):
    """Source blocks to projected blocks. The probes are parameters if they are learned, else a buffer.

    With `images: written` there are no probes: a network writes the block's inputs from the stem's parameters.
    """

    probes: Tensor

    def __init__(self, config: TranslatorConfig, architecture: Architecture) -> None:
        super().__init__()
        self.options, self.architecture = config.projection, architecture
        written = self.options.images == "written"
        self.writer = InputWriter(self.options.probes, architecture) if written else None
        blank = torch.zeros(0 if written else self.options.probes, *architecture.image_shape)
        if self.options.learned and not written:
            self.probes = nn.Parameter(blank)
        else:
            self.register_buffer("probes", blank)

    def draw_probes(self, images: Tensor | Mixture, generator: torch.Generator) -> None:
        """Draw strokes, or with `images: mixture` what is like `images`; see `Translator.draw_probes`."""
        if self.writer is not None:
            return
        if self.options.images == "strokes":
            drawn = strokes(len(self.probes), self.architecture.image_shape, generator)
        else:
            drawn = mixture(images, len(self.probes), generator)
        self.probes.data = to_parameters(drawn).to(self.probes)

    def surroundings(self, members: State) -> Surroundings:
        """Run `members` (the source block's names, `stem.…` and `head.…`) on the probes, or on written inputs."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.options.learned):
            if self.writer is None:
                activations = stem_activations(members, to_images(self.probes), self.architecture)
            else:
                activations = self.writer(members)
            return surround(members, activations, self.architecture)

    def forward(self, members: State, surroundings: Surroundings, count: int = 1) -> list[Projected]:
        """Return the best `count` blocks for each of `members`, best first."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.options.learned):
            return projections(members, surroundings, self.architecture, count)


@dataclass(frozen=True)
class Projected:
    """Projected blocks and their statistics on the probes.

    `chosen`, int64 [B, K], are the source units that a block keeps, None if its units are none of the source's.
    `activity` [B, H, 2] are mean and root mean square of the activation of each candidate unit, `errors` [B, C, 2]
    those of the residual of each channel.
    """

    units: Units
    chosen: Tensor | None
    activity: Tensor
    errors: Tensor


def projected_block(members: State, architecture: Architecture, images: Tensor) -> State:
    """Return the projected target block of each member (source block, `stem.…`, `head.…`) on images [N, C, H, W]."""
    surroundings = surround(members, stem_activations(members, images, architecture), architecture)
    units = projections(members, surroundings, architecture)[0].units
    return write(units, target_layout(architecture)) | architecture.layouts()[1].copied_of(members)


def projections(
    members: State, surroundings: Surroundings, architecture: Architecture, count: int = 1
) -> list[Projected]:
    """Return the `count` best projected blocks of each member, best first; fewer if there are fewer choices of units.

    The choices with the least squared errors are ranked by the KL divergence from the source's predictions.
    """
    source, layout = layouts(architecture)
    keep = layout.hidden
    candidates = _candidates(members, surroundings, source, layout)
    features = surroundings.last_inputs(write(candidates, layout))
    if layout.channel:
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    wanted = surroundings.wanted_response if layout.rectified else surroundings.wanted - surroundings.skipped
    equations = normal_equations(features, wanted, constant=bool(layout.channel))
    hidden = candidates.edges.shape[1]
    fits = project(equations, hidden, keep, shortlist=max(SHORTLIST, count))
    if fits.units.shape[1] > 1:
        fits = fits.pick(_divergences(fits, features, hidden, surroundings, layout.rectified).argsort(1)[:, :count])
    activity = _moments(features[:, : hidden * layout.values].reshape(len(features), hidden, -1))
    return [
        _block(fits, number, candidates, layout, activity, _moments(wanted - _response(fits, number, features, hidden)))
        for number in range(fits.units.shape[1])
    ]


def _moments(values: Tensor) -> Tensor:
    """Return mean and root mean square over the samples of values [B, n, S]: [B, n, 2]."""
    return torch.stack([values.mean(-1), values.square().mean(-1).add(1e-12).sqrt()], dim=-1)


def _response(fits: Fits, number: int, features: Tensor, hidden: int) -> Tensor:
    """Return the outputs [B, C, S] of the last layer of the fit `number` of each member for features [B, F, S]."""
    return _last_layers(fits, hidden)[:, number] @ features


def _candidates(members: State, surroundings: Surroundings, source: Layout, layout: Layout) -> Units:
    """Return the hidden units that a target block may keep, with zeros as outgoing weights.

    For convolutions they are the source's; their biases are absorbed if the target has none. For layers over channels
    they are least-squares fits of the source's units at one position, and one unit a channel that passes it on. For
    attention, whose units are channels, queries, keys and values are the identity.
    """
    incoming, biases = source.incoming[0].folded(members)
    incoming = incoming.flatten(2)
    if not layout.projects_itself:
        channels = source.channels
        identity = torch.eye(channels, device=incoming.device).expand(len(incoming), -1, -1)
        edges = torch.stack([*[identity] * 3, torch.zeros_like(identity)], dim=3)[..., None]
        return Units(edges, edges.new_zeros(*edges.shape[:2], 0), edges.new_zeros(*edges.shape[:2], 0))
    if layout.values == 1:
        into, unit = _pointwise(incoming, biases, surroundings, layout.hidden)
    elif layout.unit:
        into, unit = incoming, biases[..., None]
    else:
        step = max(1, surroundings.patches.shape[2] // SAMPLES) | 1  # odd, so that it meets every image and position
        into = absorb_biases(incoming, biases, surroundings.patches[:, :, ::step])
        unit = biases.new_zeros(*biases.shape, 0)
    into = pad(into.reshape(*into.shape[:2], -1, layout.values), layout.channels, 2)
    edges = torch.stack([into, torch.zeros_like(into)], dim=3)
    return Units(edges, unit, edges.new_zeros(len(edges), edges.shape[2], len(layout.channel)))


def _pointwise(kernels: Tensor, biases: Tensor, surroundings: Surroundings, keep: int) -> tuple[Tensor, Tensor]:
    """Return weights [B, H', C] and biases [B, H', 1] of at least `keep` candidates that read one position.

    The channels at a position are fitted to the pre-activation of a source unit, over the samples where it is active.
    """
    patches = surroundings.patches.reshape(*surroundings.patches.shape[:2], *surroundings.activations.shape[2:])
    patches = patches[:, :, ::READ_STRIDE, ::READ_STRIDE].flatten(2)
    inputs = surroundings.skipped
    channels = inputs.shape[1]
    wanted = torch.baddbmm(biases[..., None], kernels, patches)
    features = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    fitted = []
    for unit in wanted.unbind(1):
        seen = features * (unit > 0)[:, None]
        fitted.append(normal_equations(seen, unit[:, None]).solve()[..., 0])
    units = torch.stack(fitted, dim=1)
    passed = torch.eye(channels + 1, device=inputs.device)[:channels].expand(len(inputs), -1, -1)
    units = torch.cat([units, passed], dim=1)
    units = F.pad(units, (0, 0, 0, max(0, keep - units.shape[1])))
    return units[..., :channels], units[..., channels:]


@torch.no_grad()
def _divergences(fits: Fits, features: Tensor, hidden: int, surroundings: Surroundings, rectified: bool) -> Tensor:
    """Return the KL divergence of the predictions with each of n fits from the source's, [B, n]."""
    found = []
    for weights in _last_layers(fits, hidden).unbind(1):
        block = torch.baddbmm(surroundings.skipped, weights, features)
        block = torch.relu(block) if rectified else block
        found.append(kl(surroundings.logits(surroundings.features(block)), surroundings.wanted_logits))
    return torch.stack(found, dim=1).nan_to_num(nan=torch.inf)


def _last_layers(fits: Fits, hidden: int) -> Tensor:
    """Return weights [B, n, O, F] over the features of all hidden units, zero for units that a fit leaves out."""
    batch, count, outputs, _, values = fits.weights.shape
    whole = fits.weights.new_zeros(batch, count, outputs, hidden, values)
    index = fits.units[:, :, None, :, None].expand_as(fits.weights)
    whole = whole.scatter(3, index, fits.weights).flatten(3)
    if fits.biases is not None:
        whole = torch.cat([whole, fits.biases[..., None]], dim=3)
    return whole


def _block(fits: Fits, number: int, candidates: Units, layout: Layout, activity: Tensor, errors: Tensor) -> Projected:
    """Return the block of the fit `number` of each member."""
    units = fits.units[:, number]
    kept = candidates.take(units)
    outgoing = pad(fits.weights[:, number].transpose(1, 2), layout.channels, 2)  # [B, K, C, V]
    edges = torch.cat([kept.edges[:, :, :, :-1], outgoing[:, :, :, None]], dim=3)
    channel = kept.channel if fits.biases is None else pad(fits.biases[:, number, :, None], layout.channels, 1)
    chosen = units if layout.values > 1 else None
    return Projected(Units(edges, kept.unit, channel), chosen, activity, pad(errors, layout.channels, 1))
