"""Opens the links that devices share, as a config names them: the server's, and cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from simulator.config.fleet import Capacity, NetworkConfig
from simulator.config.problems import Problems
from simulator.engine.network import SharedLinks
from simulator.world.groups import Group
from traces import catalog
from traces.bandwidth import BandwidthTrace, Link
from traces.text import did_you_mean
from traces.units import BYTES_PER_S_PER_MBPS


def open_network(config: NetworkConfig, groups: Sequence[Group], problems: Problems) -> SharedLinks:
    """Return the capacities that a config names; what is wrong is added to ``problems``."""
    server = None
    if config.server:
        server = problems.attempt("network.server", partial(_open, "server", config.server))
    cells = [
        problems.attempt(f"network.cells.{name}", partial(_open, name, capacity))
        for name, capacity in config.cells.items()
    ]
    numbers = {name: number for number, name in enumerate(config.cells)}
    for group in groups:
        name = group.config.cell
        if name is not None and name not in numbers:
            known = ", ".join(numbers) or "none is defined"
            problems.add(
                f"{group.where}.cell must be one of those in network.cells ({known}), got {name}"
                + did_you_mean(name, numbers)
            )
    index = [numbers.get(group.config.cell or "", -1) for group in groups]
    return SharedLinks(
        server,
        tuple(cell for cell in cells if cell),
        np.repeat(np.array(index, dtype=np.int64), [group.count for group in groups]),
    )


def _open(name: str, capacity: Capacity) -> Link:
    if capacity.mbps:
        down, up = (BandwidthTrace.constant(mbps * BYTES_PER_S_PER_MBPS) for mbps in capacity.mbps)
        return Link(name, down, up)
    assert capacity.source is not None  # the config's checks make sure of it
    found = catalog.pool(capacity.source, uplink_scale=capacity.uplink_scale)
    if len(found) > 1:
        raise ValueError(
            f"source must be one trace, got {len(found)} in {capacity.source}: "
            f"{', '.join(link.name for link in found[:3])}, ..."
        )
    return Link(name, found[0].downlink, found[0].uplink)
