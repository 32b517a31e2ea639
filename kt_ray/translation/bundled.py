"""The trained translators bundled with the package."""

from pathlib import Path

from kt_ray._io.bundled import Bundled
from kt_ray.errors import CheckpointError

TRANSLATORS = Bundled("translator", Path(__file__).parent / "pretrained", ".safetensors", CheckpointError)
