"""A Ray cluster of machines that leave and join; prints on which of them tasks were done.

A program of its own, since Ray keeps what it knows of one cluster as long as its process lives.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from devices.vocabulary.trainer import NullTrainer
from simulator.workers.pool import Pool
from simulator.workers.ray_actors import RayCluster


def where(_: Any, folder: Path) -> str:
    """Return the machine, once it may be told."""
    machine = str(ray.get_runtime_context().get_node_id())
    with (folder / "log").open("a") as log:
        log.write(f"{machine}\n")
    while not (folder / machine).exists():
        time.sleep(0.01)
    return machine


def two_tasks(
    pool: Pool,
    folder: Path,
    may_tell: Sequence[str],
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[str]:
    """Return where two tasks were done that had begun, both at once, before ``meanwhile``."""
    folder.mkdir()
    (folder / "log").touch()
    futures = [pool.submit(partial(where, folder=folder)) for _ in range(2)]
    while len((folder / "log").read_text().splitlines()) < 2:
        time.sleep(0.01)
    meanwhile()
    for machine in may_tell:
        (folder / machine).touch()
    return [future.result(120) for future in futures]


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    try:
        pool = Pool(RayCluster(partial(NullTrainer, 3), 2, gpus_each=0), 2)
        head, second = cluster.head_node.node_id, node.node_id
        first = two_tasks(pool, folder / "first", [head, second])
        lose = partial(cluster.remove_node, node, allow_graceful=False)
        lost = two_tasks(pool, folder / "lost", [head], meanwhile=lose)
        third = cluster.add_node(num_cpus=1).node_id
        joined = two_tasks(pool, folder / "joined", [head, third])
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    told = {"first": first, "lost": lost, "joined": joined}
    print(json.dumps({"machines": [head, second, third]} | told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
