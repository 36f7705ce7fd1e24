"""A real Ray cluster of two nodes on this machine, for as long as a test takes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECOND = {"num_cpus": 2, "resources": {"phone": 1, "spare": 2}}
"""What the second node has and the first has not."""


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """The cluster and its second node; nodes can import what tests can."""
    # Nodes inherit the environment, and where they look for modules with it.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = os.environ.get("PYTHONPATH")
    tests = Path(__file__).parent.parent
    inside = [entry for entry in sys.path if Path(entry).is_relative_to(tests)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), *inside])
    import ray
    from ray.cluster_utils import Cluster

    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        try:
            yield cluster, cluster.add_node(**SECOND)
        finally:
            ray.shutdown()
            cluster.shutdown()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
