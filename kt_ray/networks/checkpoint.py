"""Network checkpoints of users: safetensors, or a `state_dict` that torch loads without running code.

A file may hold a network under prefixes of wrappers (Lightning's `model.`, DataParallel's `module.`, torch.compile's
`_orig_mod.`), several networks (a model and its EMA copy), an optimiser beside, or the paper's names. Here alone they
become the names of our modules, and the user's again.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray.errors import CheckpointError
from kt_ray.networks.checkpoint_file import check_kind, content
from kt_ray.networks.paper_names import network_name
from kt_ray.networks.stacked import State

STEPS = "num_batches_tracked"  # BN's counter, an integer that changes no output
DEPTH = 4  # of mappings in mappings in which states are looked for
TOP = "."  # what `--state-dict` calls the state that is not in any part of the file
OWN_NETWORK = (
    "a translator serves the network that it was trained for: check the network and its widths, or train a translator "
    "for your own"
)


@dataclass(frozen=True)
class Checkpoint:
    """The network that was found in a file: its tensors under our names, in the file's dtypes.

    `key` is what `--state-dict` calls it. `prefix` is what the file's names have before those of the network, `paper`
    whether they are the paper's names. `others` is how many further tensors the file holds.
    """

    path: Path
    state: State
    key: str
    prefix: str = ""
    paper: bool = False
    others: int = 0

    def in_dtype(self, state: Mapping[str, Tensor]) -> State:
        """Return `state`, of our names, in the dtypes of the file; what is not in it in that of most of its values.

        BN's step counters stay integers.
        """
        sizes: Counter[torch.dtype] = Counter()
        for value in self.state.values():
            sizes[value.dtype] += value.numel()
        usual = sizes.most_common(1)[0][0]
        dtypes = {name: value.dtype for name, value in self.state.items()}
        return {
            name: value if name.endswith(STEPS) else value.to(dtypes.get(name, usual)) for name, value in state.items()
        }

    def renamed(self, state: Mapping[str, Tensor]) -> State:
        """Return `state`, of our names, under names like the file's."""
        return {self.prefix + (network_name(name) if self.paper else name): value for name, value in state.items()}

    def __str__(self) -> str:
        dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in self.state.values()})
        parts = [f"{len(self.state)} tensors of {' and '.join(dtypes)}"]
        if self.key != TOP:
            parts.append(f"state_dict {self.key!r}")
        if self.prefix:
            parts.append(f"prefix {self.prefix!r}")
        if self.paper:
            parts.append("the paper's names")
        if self.others:
            parts.append(f"{self.others} other tensors are left out")
        return ", ".join(parts)


def find_network(path: Path, names: Collection[str], key: str | None = None) -> Checkpoint:
    """Return the network whose parameters have `names`, from the file at `path`, whatever prefix or part it is under.

    BN's step counters are ignored. If no state has all names, the one with most of them is returned, for
    `network_state` to say what is missing. `key` chooses one of several.
    Raises CheckpointError if the file is missing, holds no state_dict, would need code to be run, or holds several
    networks of which none is chosen.
    """
    wanted = [name for name in names if not name.endswith(STEPS)]
    holds = content(path)
    states = dict(_states(holds, ""))
    if not states:
        raise CheckpointError(f"{path} holds {_description(holds)}")
    found = [candidate for part, state in states.items() for candidate in _candidates(path, part, state, wanted)]
    chosen = [one for one in found if key in (None, one.key) or one.key.startswith(f"{key}.")]
    if not chosen:
        raise CheckpointError(f"{path} has no state_dict {key!r} of this network; it has: {_keys(found) or 'none'}")
    most = max(len(one.state.keys() & set(wanted)) for one in chosen)
    best = _distinct([one for one in chosen if len(one.state.keys() & set(wanted)) == most])
    if wanted and most == len(wanted) and len(best) > 1:
        raise CheckpointError(f"{path} holds several networks: {_keys(best)}; choose one with --state-dict")
    for name, value in best[0].state.items():
        check_kind(path, best[0].prefix + name, value)
    return best[0]


def read_state(path: Path) -> State:
    """Return the named tensors in the file at `path`, the first of several states.

    Raises CheckpointError as `find_network` does.
    """
    return find_network(path, ()).state


def read_network(path: Path, network: nn.Module, key: str | None = None) -> State:
    """Return the parameters and buffers of `network` that the file at `path` holds, float32.

    Raises CheckpointError as `find_network` and `network_state` do.
    """
    return network_state(find_network(path, network.state_dict().keys(), key), network)


def load_network(network: nn.Module, path: Path, key: str | None = None) -> Checkpoint:
    """Load the file at `path` into `network`, whose BN's step counters stay; return what was found.

    Raises CheckpointError as `find_network` and `network_state` do.
    """
    found = find_network(path, network.state_dict().keys(), key)
    network.load_state_dict(network_state(found, network), strict=False)
    return found


def network_state(checkpoint: Checkpoint, network: nn.Module) -> State:
    """Return what was found in a file as the parameters and buffers of `network`, float32, without BN's step counters.

    Raises CheckpointError naming the first names or shapes that differ, or the first tensor that is not finite.
    """
    path, state = checkpoint.path, checkpoint.state
    expected = {name: value for name, value in network.state_dict().items() if not name.endswith(STEPS)}
    problems = [
        f"{name} has shape {_shape(state[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    problems += [f"{name} is missing (expected {_shape(expected[name])})" for name in missing]
    problems += [f"{name} is not a parameter of this network" for name in unknown]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the network ({', '.join(name for name, _ in network.named_children())}): "
            f"{'; '.join(problems[:3])}{more}; found {_found(checkpoint, missing, unknown)}; {OWN_NETWORK}"
        )
    state = {name: state[name].detach().to(torch.float32) for name in expected}
    for name, value in state.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} holds NaN or infinity in {name}; did its training diverge?")
    return state


def _states(content: Any, part: str, depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield every mapping of names to tensors in `content`, with the keys that lead to it, joined by dots."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    entries = {name: value for name, value in content.items() if isinstance(name, str)}
    state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if state:
        yield part, state
    for name, value in entries.items():
        yield from _states(value, f"{part}.{name}" if part else name, depth + 1)


def _candidates(path: Path, part: str, state: State, wanted: list[str]) -> Iterator[Checkpoint]:
    """Yield what of `state` may be the network: under each prefix of the `wanted` names, ours or the paper's."""
    total = sum(not name.endswith(STEPS) for name in state)
    found = False
    for paper in (False, True):
        ours = {network_name(name) if paper else name: name for name in wanted}
        if paper and ours.keys() == set(wanted):
            continue
        prefixes = _prefixes(state, ours)
        if paper:  # names that the paper has in common with us do not tell that a file has the paper's
            renamed = [name for name, our in ours.items() if name != our]
            prefixes = {prefix for prefix in prefixes if any(prefix + name in state for name in renamed)}
        for prefix in sorted(prefixes):
            under = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            under = {ours.get(name, name): value for name, value in under.items() if not name.endswith(STEPS)}
            if not prefix:  # another network in the same mapping is not part of this one
                others = tuple(prefixes - {""})
                under = {name: value for name, value in under.items() if not (others and name.startswith(others))}
            key = ".".join(filter(None, (part, prefix.rstrip(".")))) or TOP
            found = True
            yield Checkpoint(path, under, key, prefix, paper, total - len(under))
    if not found:
        yield Checkpoint(path, {name: value for name, value in state.items() if not name.endswith(STEPS)}, part or TOP)


def _distinct(found: list[Checkpoint]) -> list[Checkpoint]:
    """Return `found` without those that hold the tensors of an earlier one, under whatever key."""
    distinct: list[Checkpoint] = []
    for one in found:
        if not any(_same(one.state, other.state) for other in distinct):
            distinct.append(one)
    return distinct


def _same(some: State, other: State) -> bool:
    """Return whether two states have the same names and values; tensors that are one object are not compared."""
    return some.keys() == other.keys() and all(
        value is other[name] or _equal(value, other[name]) for name, value in some.items()
    )


def _equal(value: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are of one kind and hold the same numbers; False for kinds that cannot be compared."""
    dense = all(one.layout is torch.strided and not (one.is_meta or one.is_nested) for one in (value, other))
    alike = dense and value.is_floating_point() and (value.dtype, value.shape) == (other.dtype, other.shape)
    return alike and bool(torch.equal(value, other))


def _prefixes(state: State, wanted: Mapping[str, str]) -> set[str]:
    """Return what precedes wanted names in those of `state`, up to a dot: the prefixes with the most names.

    None if these are no more than half of the wanted ones: another network has a few of the same names.
    """
    counts: Counter[str] = Counter()
    for name in state:
        steps = name.split(".")
        for start in range(len(steps)):
            if ".".join(steps[start:]) in wanted:
                counts["".join(f"{step}." for step in steps[:start])] += 1
    most = max(counts.values(), default=0)
    return {prefix for prefix, count in counts.items() if count == most and 2 * count > len(wanted)}


def _description(content: Any) -> str:
    """Return what is wrong with `content`, which holds no state_dict."""
    kinds = ""
    if isinstance(content, Mapping):
        others = [f"{key!r} ({type(value).__name__})" for key, value in content.items()]
        kinds = f" with {', '.join(others[:5])}" + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return f"a {type(content).__name__}{kinds}; expected a state_dict of named tensors"


def _keys(found: Collection[Checkpoint]) -> str:
    return ", ".join(dict.fromkeys(one.key for one in found))


def _found(checkpoint: Checkpoint, missing: list[str], unknown: list[str]) -> str:
    """Return what a state that does not fit holds: how many tensors under which names, and the nearest unknown one."""
    counts = Counter(name.partition(".")[0] for name in checkpoint.state)
    heads = ", ".join(f"{head} ({count})" for head, count in counts.most_common(6))
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    text = f"{len(checkpoint.state)} tensors under {heads}{more}" + (f", {checkpoint}" if checkpoint.prefix else "")
    for name in missing:
        near = difflib.get_close_matches(name, unknown, 1, 0.6)
        if near:
            return f"{text}; {near[0]} is nearest to {name}"
    return text


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"
