"""Zoos of one recipe made into one."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from kt_ray.errors import ZooError
from kt_ray.zoo.definition import same_entry
from kt_ray.zoo.store import ZooStore

MAY_DIFFER = ("seed", "versions")


def merge_zoos(sources: Sequence[ZooStore], into: ZooStore) -> int:
    """Add the members of `sources` to the zoo `into`, made like the first if there is none; returns members added.

    A member is known by its seed: what both have is added once. Members of a zoo with another seed keep their split
    and get ids such as `train-000012-of-7`. Raises ZooError where pair, network, recipe or dataset differ, or where a
    source is damaged.
    """
    if not sources:
        raise ZooError("no zoo to merge; name at least one")
    if not into.exists():
        into.copy_definition(sources[0])
    wanted = into.definition()
    for source in sources:
        theirs = source.definition()
        for key, value in wanted.items():
            if key not in MAY_DIFFER and not same_entry(key, theirs.get(key), value):
                raise ZooError(f"{source.uri} has another {key} than {into.uri}; only zoos of one recipe can be merged")
    before = len(into.present())
    for source in sources:
        seed = source.definition()["seed"]
        for part in source.stream():
            rows = part.index
            if seed != wanted["seed"]:
                names = [f"{member_id}-of-{seed}" for member_id in rows["id"].to_pylist()]
                rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(names))
            into.add(part.parameters, rows)
    return len(into.present()) - before
