"""Defines the conditions of a run: all that the engine asks about the world of the devices."""

from __future__ import annotations

from dataclasses import dataclass

from devices.cost.model import CostModel
from devices.fleet.fleet import Fleet
from devices.models.spec import ModelSpec
from devices.tasks.task import Metric
from simulator.engine.faults import Faults
from simulator.engine.modes import NO_MODES, PowerModes
from simulator.engine.network import SharedLinks


@dataclass(frozen=True, eq=False, kw_only=True)
class Conditions:
    """The conditions of a run follow from config and seed, never from the strategy."""

    model: ModelSpec
    """The sizes of the model that is fine-tuned."""
    metrics: tuple[Metric, ...]
    """The metrics that a model is judged by. A target is a value of the first one."""
    fleet: Fleet
    """The devices, with their links, calendars, batteries and memory."""
    faults: Faults
    """What goes wrong, and when."""
    shared_links: SharedLinks
    """The capacities that transfers share."""
    modes: PowerModes = NO_MODES
    """The power modes of devices whose mode changes by round."""
    cost_model: CostModel
    """The bytes, FLOPs, seconds and memory that a plan takes on a device."""
