"""Ray clusters of several nodes on this machine, on loopback alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OBJECT_STORE = 200_000_000  # bytes a node


def loopback_only() -> None:
    """Make Ray's processes that this process starts or joins listen on loopback; there is no public setting."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def local_cluster(*nodes: dict[str, Any], head: dict[str, Any] | None = None, timeout: float = 60.0) -> Iterator[Any]:
    """Yield a running `ray.cluster_utils.Cluster` with a head without cores and one node for each of `nodes`."""
    import ray
    from ray.cluster_utils import Cluster

    loopback_only()
    arguments = {"num_cpus": 0, "object_store_memory": OBJECT_STORE} | (head or {})
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        for node in nodes:
            cluster.add_node(**{"object_store_memory": OBJECT_STORE} | node, wait=False)
        cluster.wait_for_nodes(timeout=timeout)
        yield cluster
    finally:
        ray.shutdown()  # else the cluster does not end, and says so in the place of what went wrong
        cluster.shutdown()


def stored_bytes(port: int) -> float:
    """Return the bytes of objects in the object store of the node whose manager listens on `port`, as Ray counts."""
    from ray._private.internal_api import node_stats

    stats = node_stats(node_manager_address="127.0.0.1", node_manager_port=port, include_memory_info=False)
    return float(stats.store_stats.object_store_bytes_used)
