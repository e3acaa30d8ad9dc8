"""A cluster of Ray on this machine, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A head without work, and two nodes with a core each: a `ray.cluster_utils.Cluster`."""
    import ray
    from ray.cluster_utils import Cluster

    # Its workers step back behind whatever else computes; beside other tests they would hardly come to import torch.
    os.environ.update(
        {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120", "RAY_worker_niceness": "0"}
    )
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(wait=False, num_cpus=1)
        made.wait_for_nodes(timeout=300)  # its own patience is too short for a busy machine
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
