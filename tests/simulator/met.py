"""This module describes what devices meet, in the words of the tests of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from devices.fleet.fleet import Device
from simulator.config.faults import FaultsConfig
from simulator.config.problems import Problems
from simulator.config.schema import read_section
from simulator.engine.faults import Faults, draw_faults
from simulator.engine.server import simulate
from simulator.log.records import ClientRecord
from tests.simulator.small import Memory, make_device, make_federation
from traces.availability import AvailabilityTrace
from traces.steps import StepTrace


def run(fleet: Sequence[Device], **given: Any) -> Memory:
    log = Memory()
    simulate(make_federation(fleet, **given), log)
    return log


def steps(*pairs: tuple[float, float]) -> StepTrace:
    """Return a step trace of (length_s, value) that holds its last value."""
    edges_s = np.concatenate([[0.0], np.cumsum([float(length) for length, _ in pairs])])
    return StepTrace(edges_s[:-1], np.array([float(v) for _, v in pairs]), math.inf)


def faults(num_devices: int, seed: int = 0, **config: Any) -> Faults:
    said = read_section(FaultsConfig, config)
    return draw_faults(said, num_devices, seed=seed, problems=Problems())


def free_run() -> ClientRecord:
    """Return the record of one undisturbed device in one round, to measure others against."""
    (record,) = run([make_device(0)], rounds=1).clients
    assert record.download_s > 0.01
    assert record.train_s > 0.001
    assert record.upload_s > 0.01
    return record


def away(start_s: float, end_s: float, period_s: float = 1e6) -> AvailabilityTrace:
    return AvailabilityTrace.of([(0.0, start_s), (end_s, period_s)], period_s)
