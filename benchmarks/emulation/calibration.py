"""Fits the free numbers of the simulation of this machine to federations that were run on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis.calibration.step_fit import Configuration, Fit, fit_rates, measured_step
from benchmarks.emulation.server import Served
from benchmarks.emulation.trials import MAX_LENGTH, Files, Trial
from benchmarks.emulation.workbench import Workbench
from devices.cost.closed_form import ClosedFormCost
from devices.fleet.fleet import Device
from devices.fleet.profile import DeviceProfile, StepRates
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TrainingPlan
from simulator.config.schema import RunConfig
from simulator.world.build import build_world
from traces.steps import StepTrace

GUESSED = DeviceProfile(
    name="host",
    title="the machine that the emulation runs on",
    tier="calibrated",
    flops_per_s={32: 1e11},
    memory_bytes=8 * 2**30,
    memory_bytes_per_s=1e10,
    overhead_s=0.01,
    power_w={"idle": 1.0, "compute": 1.0, "radio": 1.0},
    confidence="low",
    source="guessed, to make plans with that it can be calibrated on",
    measured={32: StepRates(1e11, 1e10, 1e10, 1e10, 1e10, 0.01)},
)
HELD_OUT = 4
"""One of this many distinct plans is held out of the fit, to test it."""


class Calibration(NamedTuple):
    """A calibration holds the fitted parameters of this machine."""

    fit: Fit  # rates of this machine when it is not slowed down
    message_s: float  # seconds that a message takes beside those of its link
    num_served: int

    @property
    def host(self) -> DeviceProfile:
        """Return this machine as a profile."""
        return replace(GUESSED, measured={32: self.fit.rates}, source="fitted to an emulation")


def calibrate(bench: Workbench, files: Files, trials: Sequence[Trial]) -> Calibration:
    """Run the trials, and fit rates to their training and a constant to their messages."""
    served: list[Served] = []
    late_s: list[float] = []
    files.write_profiles(GUESSED, trials)
    for trial in trials:
        config = files.config(trial)
        found = bench.emulate(config, trial.slowdowns).served
        late_s += [one.measured_s - one.link_s for one in transfers(config, found)]
        served += found
    model = build_world(config, trial.name).model
    return Calibration(fitted(served, model), float(np.median(late_s)), len(served))


def fitted(served: Iterable[Served], model: ModelSpec) -> Fit:
    """Return rates of this machine, fitted to the processor time of each plan, and their errors.

    Plans that ask for the same training count as repeats of one. Raises NoisyMachineError where
    those differ too much.
    """
    costs = ClosedFormCost(model, MAX_LENGTH)
    repeats: dict[tuple[object, ...], list[Served]] = {}
    for one in served:
        repeats.setdefault(costs.demand(one.plan)[:3], []).append(one)
    steps = [
        measured_step(
            "host",
            costs,
            _configuration(same[0].plan, number),
            [one.report.compute_s / one.plan.local_steps for one in same],
        )
        for number, same in enumerate(repeats.values())
    ]
    return fit_rates(steps, 32)


def _configuration(plan: TrainingPlan, number: int) -> Configuration:
    packed = plan.num_quantized_blocks
    bits = min(plan.activation_bits) if packed else 32
    return Configuration(plan, MAX_LENGTH, packed, bits, number % HELD_OUT == HELD_OUT - 1)


class Transfer(NamedTuple):
    """A transfer has the seconds that it took, and those that its link needs from its start."""

    measured_s: float
    link_s: float  # by the latency and the integral of the link's rate


def transfers(config: RunConfig, served: Iterable[Served]) -> Iterator[Transfer]:
    """Yield the download and upload of each plan, without those that share a link."""
    fleet = build_world(config, config.label).fleet
    for record in (one.record for one in served):
        device = fleet[record.device_id]
        down, up = (way.steps for way in (device.link.downlink, device.link.uplink))
        link_s = _link_s(device, down, record.started_s, record.download_bytes)
        yield Transfer(record.download_s, link_s)
        trained_s = record.started_s + record.download_s + record.train_s
        yield Transfer(record.upload_s, _link_s(device, up, trained_s, record.upload_bytes))


def _link_s(device: Device, trace: StepTrace, asked_s: float, size_bytes: int) -> float:
    latency_s = device.latency.at(asked_s)
    return latency_s + trace.time_to(size_bytes, asked_s + latency_s)
