"""Zoos of a workspace by name."""

from __future__ import annotations

from pathlib import Path

from kt_ray._io.bundled import PREFIX
from kt_ray.errors import ZooError
from kt_ray.studies.workspace import Workspace
from kt_ray.zoo.bundled import ZOOS
from kt_ray.zoo.store import ZooStore, zoo_names


def open_zoo(name: str, root: Path | None) -> ZooStore:
    """Return the zoo called `name` in the workspace, a bundled one, or that at the directory or URI `name`.

    A bundled one is written `pretrained:NAME`. Raises ZooError if there is none.
    """
    if name.startswith(PREFIX):
        return ZooStore(str(ZOOS.path(name)))
    if "/" in name:
        store = ZooStore(name)
        if store.exists():
            return store
        raise ZooError(f"no zoo at {name}; `kt-ray zoo build STUDY.yaml` makes one")
    workspace = Workspace.existing(root)
    store = ZooStore(workspace.zoo(name))
    if not store.exists():
        folder = workspace.root / "zoos"
        known = zoo_names(folder)
        raise ZooError(f"no zoo {name!r} in {workspace.root}; there are: {', '.join(known) or 'none'}")
    return store
