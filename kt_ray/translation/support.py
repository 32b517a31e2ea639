"""The options of a translator that the blocks of an architecture support."""

from __future__ import annotations

from kt_ray.config import TranslatorConfig
from kt_ray.errors import ConfigError
from kt_ray.networks import Architecture, PaperArchitecture
from kt_ray.translation.units import layouts


def check_supported(config: TranslatorConfig, architecture: Architecture) -> None:
    """Raise ConfigError with a line for each option of `config` that the blocks of `architecture` do not support."""
    source, target = layouts(architecture)
    pair, problems = architecture.pair, []
    if source.flat or target.flat:
        which = "source" if source.flat else "target"
        why = f"of pair {pair} the {which} block's layout is not one layer of hidden units with kernels of one size"
        if config.family != "mlp":
            problems.append(f"translator.family: {why}; only the family mlp serves it, got {config.family}")
        if config.output == "residual":
            problems.append(f"translator.output: {why}, so no block can be made without learning; set it to direct")
        if config.refinement.steps and config.refinement.starts > 1:
            problems.append(f"translator.refinement.starts: {why}; set it to 1")
    if source.flat and (config.canonical or config.statistics):
        problems.append(f"translator: of pair {pair} no hidden units are known; set canonical and statistics to false")
    if not source.flat and not source.projects_itself and (config.family == "mixer" or config.canonical):
        problems.append(
            f"translator: source units of pair {pair} join more than two layers; choose another family than mixer, and "
            "set canonical to false"
        )
    if not source.flat and config.statistics and None in (source.incoming[0].norm, source.outgoing[0].norm):
        problems.append(f"translator.statistics: source blocks of pair {pair} have no batch norm; set it to false")
    if config.context == "network" and not isinstance(architecture, PaperArchitecture):
        problems.append("translator.context: network is known of the paper's network alone; set it to block")
    if config.output == "residual" and not target.flat and target.values not in (1, source.values):
        problems.append(
            f"translator.output: kernels of {target.values} values cannot begin as kernels of {source.values}; set it "
            "to direct"
        )
    if any(name.endswith("running_var") for name, _ in target.flat):
        problems.append(f"pair {pair}: batch norm of a target block is written only where its pair has a layout")
    if (
        config.refinement.steps
        and config.refinement.method == "gauss_newton"
        and (not isinstance(architecture, PaperArchitecture) or target.layers[0].kernel != (3, 3))
    ):
        problems.append(
            "translator.refinement.method: gauss_newton serves the paper's network and blocks of two 3×3 convolutions; "
            "choose newton"
        )
    if config.projects and not can_project(architecture):
        problems.append(
            f"translator.base: blocks of pair {pair} cannot be projected; choose pruned, merged, transported"
        )
    if problems:
        raise ConfigError(problems)


def can_project(architecture: Architecture) -> bool:
    """Return whether least squares give a target block: its units are the source's, or the network is the paper's."""
    source, target = layouts(architecture)
    if isinstance(architecture, PaperArchitecture):
        return True
    if source.flat or target.flat or not (source.projects_itself and target.projects_itself):
        return False
    return source.values == target.values and bool(source.layers[0].kernel) and target.hidden <= source.hidden
