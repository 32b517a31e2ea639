"""The trained zoos bundled with the package."""

from pathlib import Path

from kt_ray._io.bundled import Bundled
from kt_ray.errors import ZooError

ZOOS = Bundled("zoo", Path(__file__).parent / "pretrained", "", ZooError)
