"""A trained translator as one safetensors file; its configuration is JSON in the file's header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from kt_ray._io.display import Displayed
from kt_ray._io.files import write_whole
from kt_ray.config import PairChoice, TranslatorConfig
from kt_ray.config.base import Frozen
from kt_ray.config.code import hashes
from kt_ray.config.network import AnyNetwork
from kt_ray.config.study_code import code_of, require_code
from kt_ray.errors import CheckpointError, ConfigError
from kt_ray.networks import AnyArchitecture, State, architecture_of
from kt_ray.networks.state_file import read_written, write_state
from kt_ray.translation.card import card
from kt_ray.translation.translator import Translator, build_translator

FORMAT = "kt_ray.translator/1"
FILE, CONFIG, CARD = "translator.safetensors", "config.json", "README.md"
Size = Annotated[int, Field(ge=1, le=2**20)]


class _Architecture(Frozen):
    """The architecture as a translator's file has it."""

    pair: PairChoice
    network: AnyNetwork
    image_shape: tuple[Size, Size, Size]
    classes: Size
    code: dict[str, str] = Field(default_factory=dict)

    def architecture(self) -> AnyArchitecture:
        """Return what is described. Raises ConfigError if it names what is not registered here."""
        return architecture_of(self.pair, self.network, self.image_shape, self.classes)


@dataclass(frozen=True, repr=False)
class LoadedTranslator(Displayed):
    """A translator in evaluation mode and what was saved beside it."""

    translator: Translator
    config: TranslatorConfig
    architecture: AnyArchitecture
    extra: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write the translator and what is kept beside it as one safetensors file.

        Args:
            path: Of the file; directories above it are made.

        Returns:
            The path.

        Raises:
            CheckpointError: If it cannot be written.
        """
        save_translator(Path(path), self.translator, self.config, self.architecture, self.extra)
        return Path(path)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write a directory that can be uploaded to a hub as it is: the translator, its description and a model card.

        Args:
            directory: Made if it is missing.

        Returns:
            The directory, which `kt_ray.load` reads.

        Raises:
            CheckpointError: If it cannot be written.
        """
        folder = Path(directory)
        self.save(folder / FILE)
        described = {"config": self.config.model_dump(mode="json"), "architecture": self.architecture.describe()}
        try:
            write_whole(folder / CONFIG, json.dumps({"format": FORMAT, **described}, indent=1).encode())
            write_whole(folder / CARD, card(self).encode())
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written ({error.strerror}); name another directory") from None
        return folder

    def display_title(self) -> str:
        return f"translator for {self.architecture.pair}, {self.config.family}"

    def display_rows(self) -> list[dict[str, Any]]:
        accuracy = self.extra.get("metrics", {}).get("accuracy_mean")
        shown = {
            "images": "×".join(map(str, self.architecture.image_shape)),
            "network": str(self.architecture.network),
            "learned parameters": sum(value.numel() for value in self.translator.parameters()),
            "refinement steps": self.config.refinement.steps,
            "mean accuracy on selection": None if accuracy is None else float(accuracy),
            "zoo": self.extra.get("zoo"),
        }
        return [{"": name, "value": value} for name, value in shown.items() if value is not None]


def save_translator(
    path: Path, translator: Translator, config: TranslatorConfig, architecture: AnyArchitecture, extra: dict[str, Any]
) -> None:
    """Write `translator` to `path`, as `write_state` does. `extra` is anything JSON: seeds, zoo, accuracies."""
    metadata = {
        "format": FORMAT,
        "config": config.model_dump_json(),
        "architecture": json.dumps(architecture.describe()),
        "extra": json.dumps(extra),
        "code": json.dumps(hashes([*architecture.code, *code_of(("family", config.family))])),
    }
    write_state(path, translator.state_dict(), metadata)


def load_translator(path: Path) -> LoadedTranslator:
    """Return the translator in the file at `path`, or in the directory that `save_pretrained` wrote.

    Raises CheckpointError if it is missing, damaged or of another format.
    """
    path = path / FILE if path.is_dir() else path
    tensors, metadata = read_written(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a translator: its format is {metadata.get('format')!r}, expected {FORMAT!r}; "
            "give a file written by kt-ray"
        )
    try:
        require_code(json.loads(metadata.get("code", "{}")))
        config = TranslatorConfig.model_validate_json(metadata["config"])
        architecture = _Architecture.model_validate_json(metadata["architecture"]).architecture()
        extra = json.loads(metadata["extra"])
        if not isinstance(extra, dict) or not isinstance(extra.get("metrics", {}), dict):
            raise ValueError("extra is no mapping, or its metrics are none")
        _check_sizes(config, architecture, tensors)
        translator = build_translator(config, architecture)
        translator.load_state_dict(tensors)
    except ConfigError as error:
        raise CheckpointError(f"{path} is of what is not registered here: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} does not fit this version of kt_ray: {' '.join(str(error).split())[:300]}; train it again"
        ) from None
    return LoadedTranslator(translator.eval().requires_grad_(False), config, architecture, extra)


def _check_sizes(config: TranslatorConfig, architecture: AnyArchitecture, tensors: State) -> None:
    """Raise ValueError unless the translator described has the tensors of the file, before any is allocated."""
    depth = getattr(config.of_family, "depth", None) or 0
    if depth > len(tensors):
        raise ValueError(f"the file has {len(tensors)} tensors, expected at least one for each of {depth} layers")
    with torch.device("meta"):
        expected = build_translator(config, architecture).state_dict()
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    differing = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {shapes.get(name, 'none')}")
