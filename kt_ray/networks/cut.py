"""A network cut at a block: what runs before it, the block, and what runs after it, with the network's own names.

Nothing is traced or renamed. A part is a copy of the network in which modules are passed over: after the cut, those
that have run before the block return zeros of the right shape, and the block returns what it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Set
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from kt_ray._io.text import first_line
from kt_ray.errors import ConfigError

Preprocessing = Callable[[Tensor], Tensor]


class _Reached(BaseException):
    """The block has been reached. No Exception, which a network's own code could catch."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


class Cut:
    """`network` cut at the module path `site`, in evaluation mode.

    `before` maps images [N, C, H, W] in [0, 1] to what the block reads, `block` maps that to what it writes, `after`
    maps that to logits. `before` and `after` are modules whose tensors have their names in the whole network; each has
    only those that it uses, so that `torch.func.functional_call` and `stacked.forward` take what `part_of` returns.
    `shapes` has those of `inputs` and `outputs` of the block and of the `logits`, without the batch.

    Raises ConfigError if the site is no module, is not run once with one tensor to one tensor, or if what runs after it
    reads more than its output.
    """

    def __init__(
        self,
        network: nn.Module,
        site: str,
        image_shape: tuple[int, int, int],
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.site = site
        network = copy.deepcopy(network).eval()
        try:
            self.block = network.get_submodule(site) if site else network
        except AttributeError:
            known = ", ".join([name for name, _ in network.named_modules() if name][:12])
            raise ConfigError(f"site {site!r} is no module of the network; it has {known}, …") from None
        if self.block is network:
            raise ConfigError("site '' is the whole network; name a module inside it")
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        record = _Record(network, site, images, preprocessing)
        self.shapes = record.shapes
        self.before = _Before.of(network, site, preprocessing, record.only_after)
        self.after = _After.of(network, site, image_shape, record.skipped)
        self.block = copy.deepcopy(self.block)
        self._check(record, images)

    def block_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the block's tensors of a state_dict of the network, under the block's names."""
        start = len(self.site) + 1
        return {name[start:]: value for name, value in state.items() if name.startswith(f"{self.site}.")}

    @staticmethod
    def part_of(state: Mapping[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a state_dict, or a stack, of the network that `before` or `after` has."""
        return {name: state[name] for name in part.state_dict() if name in state}

    @staticmethod
    def whole(network: nn.Module, preprocessing: Preprocessing) -> nn.Module:
        """Return a copy of `network`, with its names, that takes images in [0, 1]."""
        return _Whole.of(network, preprocessing)

    @torch.no_grad()
    def _check(self, record: _Record, images: Tensor) -> None:
        """Raise ConfigError unless the parts together are the network."""
        if images.is_meta:
            return
        try:
            logits = self.after(self.block(self.before(images)))
        except Exception as error:  # where the network's own forward reads a layer that was passed over
            raise ConfigError(
                f"site {self.site}: the network cannot be cut here: {type(error).__name__}: {first_line(error)}"
            ) from error
        scale = record.logits.abs().max().clamp_min(1e-6)
        if logits.shape != record.logits.shape or (logits - record.logits).abs().max() > 1e-3 * scale:
            raise ConfigError(
                f"site {self.site}: the network reads more than this block's output after it; name a larger block "
                "around all of these paths"
            )


class _Record:
    """One run of a network on images: what ran before the block, what after, and the shapes at its ends."""

    def __init__(self, network: nn.Module, site: str, images: Tensor, preprocessing: Preprocessing | None) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.skipped: dict[str, tuple[int, ...]] = {}  # modules done before the block, shapes of their outputs
        self._runs, self._entered, self._site = 0, False, site
        self._before: set[str] = set()
        self._after: set[str] = set()
        handles = []
        for path, module in network.named_modules():
            inside = path == site or path.startswith(f"{site}.")
            around = not path or site.startswith(f"{path}.")
            if path == site:
                handles.append(module.register_forward_hook(self._at_block, with_kwargs=True))
                handles.append(module.register_forward_pre_hook(self._enter))
            elif not inside and not around:
                handles.append(module.register_forward_hook(self._passed(path)))
        try:
            with torch.no_grad():
                self.logits = network(preprocessing(images) if preprocessing else images)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the network does not run on images {tuple(images.shape)}: {type(error).__name__}: {first_line(error)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        if self._runs != 1:
            raise ConfigError(f"site {site}: the network runs this block {self._runs} times, expected once")
        if not isinstance(self.logits, Tensor):
            raise ConfigError(f"the network returns a {type(self.logits).__name__}, expected logits [N, classes]")
        self.shapes["logits"] = tuple(self.logits.shape[1:])
        self.only_after = _outermost(self._after - self._before)
        kept = _outermost(self.skipped.keys() - self._after)
        self.skipped = {path: shape for path, shape in self.skipped.items() if path in kept}

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        self._entered = True

    def _at_block(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        self._runs += 1
        if len(arguments) != 1 or keywords or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
            raise ConfigError(f"site {self._site}: the block must take one tensor and return one tensor")
        self.shapes |= {"inputs": tuple(arguments[0].shape[1:]), "outputs": tuple(output.shape[1:])}

    def _passed(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            (self._after if self._entered else self._before).add(path)
            if not self._entered and isinstance(output, Tensor):
                self.skipped[path] = tuple(output.shape[1:])

        return hook


class _Part(nn.Module):
    """A copy of a network with another `forward`, which keeps the names of its parameters and survives `deepcopy`."""

    @classmethod
    def copied(cls, network: nn.Module) -> Any:
        """Return a copy of `network` whose forward is that of this class."""
        module = copy.deepcopy(network)
        module.__dict__["network_forward"] = MethodType(type(network).forward, module)
        module.__dict__["forward"] = MethodType(cls.forward, module)
        return module


class _Whole(_Part):
    @classmethod
    def of(cls, network: nn.Module, preprocessing: Preprocessing) -> nn.Module:
        module: nn.Module = cls.copied(network)
        module.__dict__["preprocessing"] = preprocessing
        return module

    def forward(self: Any, images: Tensor) -> Tensor:
        logits: Tensor = self.network_forward(self.preprocessing(images))
        return logits


class _Before(_Part):
    @classmethod
    def of(cls, network: nn.Module, site: str, preprocessing: Preprocessing | None, only_after: set[str]) -> nn.Module:
        module: nn.Module = cls.copied(network)
        module.__dict__["preprocessing"] = preprocessing
        for path in only_after:
            _strip(module.get_submodule(path))
        block = module.get_submodule(site)
        block.__dict__["forward"] = MethodType(_reached, block)
        _strip(block)
        return module

    def forward(self: Any, images: Tensor) -> Tensor:
        """Return what the block reads."""
        try:
            self.network_forward(self.preprocessing(images) if self.preprocessing else images)
        except _Reached as reached:
            return reached.activations
        raise RuntimeError("the block was not reached")


class _After(_Part):
    @classmethod
    def of(
        cls, network: nn.Module, site: str, image_shape: tuple[int, int, int], skipped: Mapping[str, tuple[int, ...]]
    ) -> nn.Module:
        module: nn.Module = cls.copied(network)
        module.__dict__["image_shape"] = image_shape
        block = module.get_submodule(site)
        module.__dict__["given"] = given = _Given()
        for path, shape in skipped.items():
            passed = module.get_submodule(path)
            passed.__dict__["skipped_shape"] = shape
            passed.__dict__["forward"] = MethodType(_zeros, passed)
            _strip(passed)
        block.__dict__["given"] = given
        block.__dict__["forward"] = MethodType(_return_given, block)
        _strip(block)
        return module

    def forward(self: Any, outputs: Tensor) -> Tensor:
        """Return logits [N, classes] from the block's outputs."""
        self.given.outputs = outputs
        try:
            logits: Tensor = self.network_forward(outputs.new_zeros(len(outputs), *self.image_shape))
        finally:
            self.given.outputs = None
        return logits


class _Given:
    """What a block returns in `_After`; copies of a network share one of their own."""

    outputs: Tensor | None = None


def _outermost(paths: Set[str]) -> set[str]:
    """Return the `paths` that are inside no other one."""
    return {path for path in paths if not any(path.startswith(f"{other}.") for other in paths)}


def _reached(self: nn.Module, activations: Tensor) -> Tensor:
    raise _Reached(activations)


def _zeros(self: Any, x: Tensor, *others: Any, **keywords: Any) -> Tensor:
    return x.new_zeros(len(x), *self.skipped_shape)  # not expanded: a network may write into it


def _return_given(self: Any, x: Tensor) -> Tensor:
    outputs: Tensor = self.given.outputs
    return outputs


def _strip(module: nn.Module) -> None:
    """Take the parameters of a module that is not run: they would be copied, moved and stacked for nothing."""
    for child in list(module._modules):
        del module._modules[child]
    module._parameters.clear()
    module._buffers.clear()
