"""A trained translator as one safetensors file; its configuration is JSON in the file's header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from kt_ray._io.display import Displayed
from kt_ray.config import NetworkConfig, TranslatorConfig
from kt_ray.errors import CheckpointError
from kt_ray.networks import Architecture
from kt_ray.networks.checkpoint import write_state
from kt_ray.translation.translator import Translator, build_translator

FORMAT = "kt_ray.translator/1"


@dataclass(frozen=True, repr=False)
class LoadedTranslator(Displayed):
    """A translator in evaluation mode and what was saved beside it."""

    translator: Translator
    config: TranslatorConfig
    architecture: Architecture
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

    def display_title(self) -> str:
        """Return pair and family."""
        return f"translator for {self.architecture.pair}, {self.config.family}"

    def display_rows(self) -> list[dict[str, Any]]:
        """Return what it takes, how large it is, and what it reached."""
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
    path: Path, translator: Translator, config: TranslatorConfig, architecture: Architecture, extra: dict[str, Any]
) -> None:
    """Write `translator` to `path`, as `write_state` does. `extra` is anything JSON: seeds, zoo, accuracies."""
    metadata = {
        "format": FORMAT,
        "config": config.model_dump_json(),
        "architecture": json.dumps(asdict(architecture) | {"network": architecture.network.model_dump()}),
        "extra": json.dumps(extra),
    }
    write_state(path, translator.state_dict(), metadata)


def load_translator(path: Path) -> LoadedTranslator:
    """The translator at `path`. Raises CheckpointError where it is missing, damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: {path}; expected a translator written by kt-ray") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a translator: its format is {metadata.get('format')!r}, expected {FORMAT!r}; "
            "give a file written by kt-ray"
        )
    try:
        config = TranslatorConfig.model_validate_json(metadata["config"])
        fields = json.loads(metadata["architecture"])
        architecture = Architecture(
            fields["pair"], NetworkConfig(**fields["network"]), tuple(fields["image_shape"]), fields["classes"]
        )
        translator = build_translator(config, architecture)
        translator.load_state_dict(tensors)
        extra = json.loads(metadata["extra"])
    except (ValidationError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit this version of kt_ray: {' '.join(str(error).split())[:300]}; train it again"
        ) from None
    return LoadedTranslator(translator.eval().requires_grad_(False), config, architecture, extra)
