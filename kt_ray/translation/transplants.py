"""Transplants: members with other blocks between their stem and head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor, nn

from kt_ray.data import LabelledImages
from kt_ray.networks import State, stacked, structure
from kt_ray.translation.site_walk import predictions, walk
from kt_ray.translation.translator import Translator
from kt_ray.zoo.members import SitesZoo, Zoo

BATCH = 250  # images at once
MEMBERS = 32  # members at once
KEPT = 256 << 20  # bytes of stem activations
Activations = list[tuple[slice, slice, Tensor]]  # some members, some images, and their stem activations [M, N, C, H, W]


class Transplants:
    """Members whose stems have seen some images: what they predict with one kind of block after another.

    Stem activations are kept, so that only blocks and heads are run again, where all of them take up to `keep` bytes;
    `kept` are those that were made before, of the same members and images on the same device.
    """

    def __init__(
        self,
        zoo: Zoo,
        images: LabelledImages,
        device: str | torch.device = "cpu",
        keep: int = KEPT,
        kept: Activations | None = None,
    ) -> None:
        self.zoo, self.images, self.device = zoo, images, device
        parts = structure(zoo.architecture)
        self.stem, self.head = parts["stem"], parts["head"]
        size = 4 * len(zoo) * len(images) * prod(zoo.architecture.activation_shape)
        with torch.no_grad():
            self.kept = list(self._activations()) if kept is None and size <= keep else kept

    def _activations(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for start in range(0, len(self.zoo), MEMBERS):
            rows = slice(start, start + MEMBERS)
            stems = stacked.to(stacked.take(self.zoo.part("stem"), rows), self.device)
            for number, (batch, _) in enumerate(self.images.batches(BATCH)):
                columns = slice(number * BATCH, number * BATCH + len(batch))
                yield rows, columns, stacked.forward(self.stem, stems, batch.to(self.device), shared=True)

    @torch.no_grad()
    def predictions(self, blocks: Mapping[str, State]) -> dict[str, Tensor]:
        """Predicted classes [R, N], on the CPU, of every member with each kind of block; stems are run once for all."""
        modules = {name: _block(self.zoo, block) for name, block in blocks.items()}
        heads = stacked.to(self.zoo.part("head"), self.device)
        shape = len(self.zoo), len(self.images)
        predicted = {name: torch.empty(shape, dtype=torch.long, device=self.device) for name in blocks}
        for rows, columns, x in self._activations() if self.kept is None else self.kept:
            of_rows = stacked.take(heads, rows)
            for name, block in blocks.items():
                outputs = stacked.forward(modules[name], stacked.to(stacked.take(block, rows), self.device), x)
                predicted[name][rows, columns] = stacked.forward(self.head, of_rows, outputs).argmax(-1)
        return {name: classes.cpu() for name, classes in predicted.items()}

    def accuracy(self, blocks: State) -> Tensor:
        """Accuracy of each member with its row of `blocks` (source or target blocks) in place, float [R]."""
        predicted = self.predictions({"blocks": blocks})["blocks"]
        return (predicted == self.images.labels.cpu()).float().mean(1)


def transplant_accuracy(zoo: Zoo, blocks: State, images: LabelledImages) -> Tensor:
    """`Transplants.accuracy`, once."""
    return Transplants(zoo, images, next(iter(blocks.values())).device, keep=0).accuracy(blocks)


def readable(zoo: Zoo) -> State:
    """Return what a translator may read of every member: the source block's names, `stem.…` and `head.…`."""
    return zoo.part("source") | stacked.surroundings(zoo.parameters)


@torch.no_grad()
def translate(translator: nn.Module, zoo: Zoo) -> State:
    """The translated target block of every member of `zoo`, on the CPU."""
    device = next(translator.parameters()).device
    translator.eval()
    written = [translator(stacked.to(some, device)) for some in stacked.chunks(readable(zoo), MEMBERS)]
    return stacked.to(stacked.concatenate(written), "cpu")


def walked(translator: Translator, zoo: SitesZoo) -> Iterator[State]:
    """Yield stacks of the networks of `zoo`, under their own names, with all blocks translated; `MEMBERS` at once."""
    device, architecture = next(translator.parameters()).device, zoo.architecture
    networks = stacked.part(zoo.parameters, "network")
    for some in stacked.chunks(networks, MEMBERS):
        *_, (_, _, small) = walk(translator, architecture, stacked.to(some, device), architecture.sites)
        yield small


def network_accuracies(translator: Translator, zoo: SitesZoo, images: LabelledImages) -> Tensor:
    """Return the accuracy of each network of `zoo` with all blocks translated, float [R]."""
    sites, labels = zoo.architecture.sites, images.labels.cpu()
    predicted = [predictions(zoo.architecture, some, images, sites, BATCH) for some in walked(translator, zoo)]
    return (torch.cat(predicted).cpu() == labels).float().mean(1)


def _block(zoo: Zoo, block: Mapping[str, Tensor]) -> nn.Module:
    """The structure whose parameters these are, the source's or the target's, for what heads read."""
    parts = structure(zoo.architecture)
    source, target = parts["source"], parts["target"]
    shapes = {name: value.shape[1:] for name, value in block.items()}
    parameters = {name: value.shape for name, value in source.state_dict().items() if name in shapes}
    return source if parameters == shapes and dict(source.named_parameters()).keys() <= shapes.keys() else target
