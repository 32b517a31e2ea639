"""The registry of networks, block pairs, datasets, translator families, losses, augmentations and samplers.

What kt_ray has itself is registered through the same decorators, and so is what installed packages add through the
entry-point group `kt_ray.plugins` (each entry point names a module whose import registers). Light to import.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import _lru_cache_wrapper, cache, lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kt_ray._io.text import first_line
from kt_ray.errors import ConfigError, KTError

logger = logging.getLogger(__name__)

GROUP = "kt_ray.plugins"
OURS = "kt_ray"  # the origin of what is built in
Made = TypeVar("Made", bound=Callable[..., Any])
Result = TypeVar("Result")

_HOMES: dict[str, tuple[str, ...]] = {  # the modules whose import registers what is built in
    "network": ("kt_ray.networks.paper", "kt_ray.networks.resnet"),
    "pair": ("kt_ray.networks.paper", "kt_ray.networks.resnet"),
    "dataset": ("kt_ray.data.sources",),
    "family": ("kt_ray.translation.families",),
    "loss": ("kt_ray.translation.losses",),
    "augmentation": ("kt_ray.translation.augmentations",),
    "sampler": ("kt_ray.search.samplers",),
}


class NoOptions(BaseModel):
    """The options of what takes none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Entry:
    """Something registered: `make(options)` makes it, `options` is the model of its options.

    `origin` is kt_ray, the name of a plugin's entry point, or the SHA-256 of a study's code.
    """

    kind: str
    name: str
    make: Callable[..., Any]
    options: type[BaseModel]
    origin: str

    def parse(self, options: Mapping[str, Any] | BaseModel | None = None) -> BaseModel:
        """Return `options` as the model of this entry. Raises ConfigError with a line for each fault."""
        if isinstance(options, self.options):
            return options
        content = options.model_dump() if isinstance(options, BaseModel) else dict(options or {})
        self._check_keys(content)
        try:
            return self.options.model_validate(content)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}" for fault in error.errors()]
            raise ConfigError([f"{self.kind} {self.name}: options.{fault}" for fault in faults]) from None

    def _check_keys(self, content: Mapping[str, Any]) -> None:
        """Raise ConfigError for a key that the model does not have, though people's own models may ignore such."""
        if self.options.model_config.get("extra") == "allow":
            return
        known = {field.alias or name for name, field in self.options.model_fields.items()} | set(
            self.options.model_fields
        )
        unknown = [str(key) for key in content if key not in known]
        if unknown:
            raise ConfigError(
                f"{self.kind} {self.name}: options.{unknown[0]}: unknown key; there are "
                f"{', '.join(sorted(known)) or 'none'}"
            )


class Kind:
    """The entries of one kind. `register.network("resnet20", options=Options)` decorates what makes one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def __call__(self, name: str, *, options: type[BaseModel] = NoOptions) -> Callable[[Made], Made]:
        """Return a decorator that registers a class or function, called with an instance of `options`, as `name`.

        Raises ConfigError if the name is taken by other code, or `options` is no pydantic model.
        """
        if not (isinstance(options, type) and issubclass(options, BaseModel)):
            raise ConfigError(f"{self.kind} {name!r}: options must be a pydantic model, got {options!r}")

        def add(make: Made) -> Made:
            origin = OURS if make.__module__.partition(".")[0] == OURS else _origin
            found = self._entries.get(name)
            if found is not None and not (_is_code(found.origin) and _is_code(origin)):
                raise ConfigError(f"{self.kind} {name!r} is registered by {found.origin} already; choose another name")
            self._entries[name] = Entry(self.kind, name, make, options, origin)
            if found is not None:
                _changed()
            return make

        return add

    def get(self, name: str, *others: str) -> Entry:
        """Return the entry `name`. Raises ConfigError with the nearest names, of `others` too, if there is none."""
        self._load()
        if name not in self._entries:
            names = sorted({*self._entries, *others})
            near = difflib.get_close_matches(name, names, 3)
            known = ", ".join(near or names)
            raise ConfigError(
                f"no {self.kind} is called {name!r}; {'near are' if near else 'there are'} {known or 'none'}. A file "
                f"with `kt_ray.register.{self.kind}`, named under `code:`, adds one"
            )
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, in alphabetical order."""
        self._load()
        return tuple(sorted(self._entries))

    def make(self, name: str, options: Mapping[str, Any] | BaseModel | None = None, *arguments: Any) -> Any:
        """Return what the entry `name` makes of `options` and what its kind gives besides.

        Raises ConfigError if it is unknown, or raises itself.
        """
        entry = self.get(name)
        parsed = entry.parse(options)
        try:
            return entry.make(parsed, *arguments)
        except KTError:
            raise
        except Exception as error:  # people's own code fails as it likes
            raise ConfigError(f"{self.kind} {name} raises {type(error).__name__}: {first_line(error)}") from error

    def remove(self, origin: str) -> None:
        """Forget everything of one origin."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.origin != origin}
        _changed()

    def entries(self, origin: str) -> tuple[Entry, ...]:
        """Return what is registered of one origin."""
        return tuple(entry for entry in self._entries.values() if entry.origin == origin)

    def restore(self, entry: Entry) -> None:
        """Put back what other code has taken the name of since."""
        self._entries[entry.name] = entry
        _changed()

    def _load(self) -> None:
        for module in _HOMES[self.kind]:
            import_module(module)
        _load_plugins()


class Register:
    """`kt_ray.register`: a decorator for each kind of thing that people may add."""

    def __init__(self) -> None:
        self.network = Kind("network")
        self.pair = Kind("pair")
        self.dataset = Kind("dataset")
        self.family = Kind("family")
        self.loss = Kind("loss")
        self.augmentation = Kind("augmentation")
        self.sampler = Kind("sampler")

    def kinds(self) -> tuple[Kind, ...]:
        return tuple(vars(self).values())


register = Register()
_origin = "this process"
_caches: list[_lru_cache_wrapper[Any]] = []


def cached(size: int) -> Callable[[Callable[..., Result]], _lru_cache_wrapper[Result]]:
    """Return a decorator that keeps the last `size` results, until a name comes to mean something else."""

    def keep(function: Callable[..., Result]) -> _lru_cache_wrapper[Result]:
        kept = lru_cache(size)(function)
        _caches.append(kept)
        return kept

    return keep


def _changed() -> None:
    for kept in _caches:
        kept.cache_clear()


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Within this, what is registered is of `origin`."""
    global _origin
    before, _origin = _origin, origin
    try:
        yield
    finally:
        _origin = before


def _is_code(origin: str) -> bool:
    """Return whether an origin is code that a person may load again: of a study, or of a notebook."""
    return origin == "this process" or origin.startswith("code ")


@cache
def _load_plugins() -> None:
    for point in entry_points(group=GROUP):
        with registering(f"plugin {point.name}"):
            try:
                point.load()
            except Exception as error:  # one broken package must not break what does not need it
                logger.warning("plugin %s cannot be loaded: %s: %s", point.name, type(error).__name__, error)
