"""What a zoo is in memory: a stack of members and an index that says what each row is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from kt_ray._io.display import Displayed
from kt_ray.config import MemberCounts, Split
from kt_ray.networks import AnyArchitecture, Architecture, SitesArchitecture, State, stacked

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Member:
    """One network to train. Its id and seed decide everything about it. `brief`: a source only, briefly trained."""

    id: str
    seed: int
    split: Split
    brief: bool = False

    @classmethod
    def of(cls, zoo_seed: int, kind: Split | Literal["brief"], number: int) -> Member:
        """Member `number` of a split, or brief: ids such as `train-000012`, seeds from the zoo's seed and the id."""
        member_id = f"{kind}-{number:06d}"
        digest = hashlib.sha256(f"{zoo_seed}:{member_id}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") >> 1
        return cls(member_id, seed, "train", True) if kind == "brief" else cls(member_id, seed, kind)

    def seed_of(self, purpose: str) -> int:
        """A seed for one `purpose`, such as "source" or "target order"."""
        digest = hashlib.sha256(f"{self.seed}:{purpose}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def members_of(zoo_seed: int, counts: MemberCounts) -> list[Member]:
    """Every member of a zoo, test and selection first, so that a zoo half built can already be evaluated."""
    kinds: tuple[Split | Literal["brief"], ...] = ("test", "selection", "train", "brief")
    return [Member.of(zoo_seed, kind, number) for kind in kinds for number in range(getattr(counts, kind))]


@dataclass(frozen=True, eq=False, repr=False)
class _Rows(Displayed):
    """Members stacked along axis 0. Compared by identity, so what is made of them can be kept."""

    architecture: AnyArchitecture
    parameters: State
    index: pa.Table
    fingerprint: str
    dataset_fingerprint: str

    def _title(self, pair: str) -> str:
        return f"zoo {self.fingerprint}: {pair}, {len(self):,} rows in memory"

    def display_rows(self) -> list[dict[str, Any]]:
        means = [(f"{kind} accuracy", f"{kind}_accuracy", "mean") for kind in ("source", "target")]
        columns = [("members", "id", "count_distinct"), *means]
        grouped = self.index.group_by("split").aggregate([(column, how) for _, column, how in columns]).to_pylist()
        return [
            {"split": row["split"]} | {name: row[f"{column}_{how}"] for name, column, how in columns} for row in grouped
        ]

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def where(self, split: Split | None = None, *, with_target: bool = True) -> Self:
        """The rows of `split` (all splits if None); with `with_target`, only those that have a target."""
        mask = pa.array([True] * len(self)) if split is None else pc.equal(self.index["split"], split)
        if with_target:
            mask = pc.and_(mask, self.index["has_target"])
        rows = torch.from_numpy(pc.indices_nonzero(mask).to_numpy().astype("int64"))
        return self.take(rows)

    def take(self, rows: Tensor) -> Self:
        """The rows `rows` (int64). Consecutive ones are views: a zoo that processes share stays one copy."""
        consecutive = len(rows) > 0 and bool((rows.diff() == 1).all())
        chosen = slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
        index = self.index.slice(int(rows[0]), len(rows)) if consecutive else self.index.take(pa.array(rows.numpy()))
        return replace(self, parameters=stacked.take(self.parameters, chosen), index=index)

    def to(self, device: torch.device | str) -> Self:
        """Return the zoo with its parameters on `device`."""
        return replace(self, parameters=stacked.to(self.parameters, device))


@dataclass(frozen=True, eq=False, repr=False)
class Zoo(_Rows):
    """Members whose blocks sit at one site.

    `parameters` maps `stem.…`, `source.…`, `target.…`, `head.…` to tensors [R, …], one row a member and snapshot;
    `target.…` of a row whose `has_target` is false is NaN. `index` has the columns `id`, `seed`, `split`, `epoch`
    (of the source phase), `has_target`, `source_accuracy`, `target_accuracy` (on the selection images) and one
    for each hyper-parameter that varies; `device` and `plan` say what trained a member and how, null if that is
    unknown. `fingerprint` says which zoo this is: what trained it and which members.
    """

    architecture: Architecture

    def views(self) -> tuple[Zoo, ...]:
        """Return the zoo at each site: this one alone."""
        return (self,)

    def display_title(self) -> str:
        return self._title(self.architecture.pair)

    def part(self, name: str) -> State:
        """The stack of `stem`, `source`, `target` or `head`, with that prefix cut off the names."""
        return stacked.part(self.parameters, name)

    def network(self, block: str | Mapping[str, Tensor] = "source") -> State:
        """Stacked networks `stem.…`, `block.…`, `head.…` with `source`, `target` or given blocks in place."""
        stack = self.part(block) if isinstance(block, str) else block
        return stacked.surroundings(self.parameters) | {f"block.{name}": value for name, value in stack.items()}


@dataclass(frozen=True, eq=False, repr=False)
class SitesZoo(_Rows):
    """Members with blocks at several sites, each network kept once.

    `parameters` maps `network.…` and, of each site, `target.SITE.…` to tensors [R, …]. `index` is that of a `Zoo`:
    `target_accuracy` is the mean over the sites, `target_accuracy/SITE` that of the network with its target at SITE.
    """

    architecture: SitesArchitecture

    def views(self) -> tuple[Zoo, ...]:
        """Return the zoo at each site, in forward order; their tensors are this zoo's, not copies."""
        architecture, place, found = self.architecture, self.index.column_names.index("target_accuracy"), []
        seen = architecture.seen(stacked.part(self.parameters, "network"))
        for site, column, (view, network) in zip(architecture.sites, site_columns(architecture), seen, strict=True):
            parameters = view.stored(network, [stacked.part(self.parameters, f"target.{site}")])
            index = self.index.set_column(place, "target_accuracy", self.index[column])
            found.append(Zoo(view, parameters, index, self.fingerprint, self.dataset_fingerprint))
        return tuple(found)

    def display_title(self) -> str:
        return self._title(f"{self.architecture.pair} at {len(self.architecture.sites)} sites")


AnyZoo = Zoo | SitesZoo


def site_columns(architecture: AnyArchitecture) -> tuple[str, ...]:
    """Return the columns of an index that tell of the target at each of several sites."""
    if isinstance(architecture, SitesArchitecture):
        return tuple(f"target_accuracy/{site}" for site in architecture.sites)
    return ()


def zoo_of(
    architecture: AnyArchitecture, parameters: State, index: pa.Table, fingerprint: str, dataset_fingerprint: str
) -> AnyZoo:
    """Return the zoo of these members, at one site or several."""
    if isinstance(architecture, SitesArchitecture):
        return SitesZoo(architecture, parameters, index, fingerprint, dataset_fingerprint)
    return Zoo(architecture, parameters, index, fingerprint, dataset_fingerprint)
