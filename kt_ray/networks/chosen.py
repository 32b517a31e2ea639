"""The architecture that a study file, a zoo's definition or a translator's file names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter

from kt_ray.config import NetworkChoice, NetworkConfig, PairChoice, PairName
from kt_ray.config.network import AnyNetwork
from kt_ray.config.study_code import require_code
from kt_ray.errors import ConfigError
from kt_ray.networks.architecture import Architecture, PaperArchitecture
from kt_ray.networks.contracts import ImageShape
from kt_ray.networks.sites import SitesArchitecture

AnyArchitecture = Architecture | SitesArchitecture
_NETWORK: TypeAdapter[NetworkConfig | NetworkChoice] = TypeAdapter(AnyNetwork)


def architecture_of(
    pair: str | PairChoice, network: NetworkConfig | NetworkChoice, image_shape: ImageShape, classes: int
) -> AnyArchitecture:
    """Return the architecture of a block pair in a network, for images of one shape.

    Without `pair.site` it is at all sites that the pair's options choose. Raises ConfigError if a name is unknown,
    options are wrong, a site is none of the network's, there is none at all, or source and target do not fit.
    """
    choice = PairChoice(name=pair) if isinstance(pair, str) else pair
    if isinstance(network, NetworkConfig) and choice.name in get_args(PairName) and not choice.options:
        if choice.site not in (None, "block"):
            raise ConfigError(f"pair.site: {choice.site} is no site of the network; it has block")
        return PaperArchitecture(choice.name, network, image_shape, classes)  # type: ignore[arg-type]
    if isinstance(network, NetworkConfig):
        network = NetworkChoice(name="paper", options=network.model_dump())
    several = SitesArchitecture(choice, network, image_shape, classes)
    sites = several.sites if choice.site is None else (choice.site,)
    if not sites:
        raise ConfigError(f"the network {network} has no sites; return their module paths from its sites()")
    for site in sites:
        several.at(site).layouts()  # which checks the site
    return several.at(sites[0]) if len(sites) == 1 else several


def described(content: Mapping[str, Any]) -> AnyArchitecture:
    """Return the architecture of what `describe` gave, or of a `zoo.json`.

    Raises ConfigError as `architecture_of` does, or if code that it names is missing, pydantic's ValidationError for
    other content.
    """
    require_code(content.get("code", {}))
    network = _NETWORK.validate_python(content["network"])
    channels, height, width = (int(size) for size in content["image_shape"])
    pair = PairChoice.model_validate(content["pair"])
    return architecture_of(pair, network, (channels, height, width), int(content["classes"]))
