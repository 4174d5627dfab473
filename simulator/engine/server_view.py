"""Tells a strategy what the server knows of the fleet: profiles, and links as last measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from algorithms.strategy import LinkRate
from devices.cost.model import Cost
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import Adapter, DeviceId, TrainingPlan
from devices.vocabulary.trainer import SalienceMetric, Trainer
from simulator.config.schema import LocalWork
from simulator.engine.conditions import Conditions
from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace

PROBE_BYTES = 1_000_000
PROBE_AT_S = -600.0
"""A device measures its link with a megabyte each way when it registers, ten minutes before time 0.
The trace repeats, so it has a past. On a link that takes longer the probe is cut at time 0."""
MAX_REMEMBERED = 1 << 16
"""The most costs of plans that are kept, since some schedulers ask for new ones in every round."""


class ServerView:
    """The server's view is the FleetView that strategies get; only measured links change it."""

    def __init__(self, world: Conditions, work: LocalWork, trainer: Trainer) -> None:
        # No device of the fleet is made here, since a large fleet makes devices only on demand.
        self._fleet = world.fleet
        self.model, self._work = world.model, work
        self.batch_size, self.micro_batch = work.batch_size, work.micro_batch
        self.proximal_mu, self.weight_format = work.proximal_mu, work.weight_format
        self.upload_bits, self.head_bits = work.upload_bits, work.head_bits
        self._cost_model = world.cost_model
        self._modes = world.modes
        self._mode_draws: tuple[int, ...] = ()
        self._in_mode: Mapping[DeviceId, DeviceProfile] = {}
        self._trainer = trainer
        self._links: dict[DeviceId, LinkRate] = {}
        self._free_bytes: dict[DeviceId, int] = {}
        self._costs: dict[tuple[bytes, str], Cost] = {}
        self._salience: dict[SalienceMetric, FloatArray] = {}
        # The Fisher information of the adapter that was asked about last.
        self._fisher: tuple[Adapter | None, FloatArray] = (None, np.zeros(0))

    @property
    def device_ids(self) -> Sequence[DeviceId]:
        return range(len(self._fleet))

    def profile(self, device_id: DeviceId) -> DeviceProfile:
        return self._in_mode.get(device_id) or self._fleet.profile_of(device_id)

    def open_round(self, number: int) -> None:
        """Take note of the power modes that devices are in from this round on."""
        if self._modes.are_none:
            return
        draws = self._modes.draws(number)
        if draws != self._mode_draws:
            self._mode_draws, self._in_mode = draws, self._modes.in_round(number)

    def memory_budget_bytes(self, device_id: DeviceId) -> int:
        if device_id in self._free_bytes:
            return self._free_bytes[device_id]
        return int(self._fleet.memory_budget_bytes[device_id])

    def num_examples(self, device_id: DeviceId) -> int:
        return self._fleet.num_examples.item(device_id)

    def local_steps(self, device_id: DeviceId) -> int:
        return self._work.steps_for(self.num_examples(device_id))

    def link(self, device_id: DeviceId) -> LinkRate:
        if device_id not in self._links:
            link = self._fleet.link_of(device_id)
            self._links[device_id] = LinkRate(_probe(link.downlink), _probe(link.uplink))
        return self._links[device_id]

    def cost(self, plan: TrainingPlan) -> Cost:
        return self.cost_on(self.profile(plan.device_id), plan)

    def cost_on(self, profile: DeviceProfile, plan: TrainingPlan) -> Cost:
        """Return the cost of a plan on a device of this profile; one for all of equal work."""
        key = (plan.workload, profile.name)
        cost = self._costs.get(key)
        if cost is None:
            if len(self._costs) >= MAX_REMEMBERED:
                self._costs.clear()
            cost = self._costs[key] = self._cost_model.cost(plan, profile)
        return cost

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        if metric not in self._salience:
            self._salience[metric] = self._trainer.block_salience(metric)
        return self._salience[metric]

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        known, found = self._fisher
        if known is not adapter:
            self._fisher = adapter, self._trainer.block_fisher(adapter)
            known, found = self._fisher
        return found

    def with_free_memory(self, device_id: DeviceId, free_bytes: int) -> ServerView:
        """Return the same fleet, in which this device has only so much memory free."""
        view = copy.copy(self)
        view._free_bytes = {device_id: free_bytes}
        return view

    def measured(self, device_id: DeviceId, rate: LinkRate) -> None:
        """Take note of the rates of a finished round trip."""
        self._links[device_id] = rate

    def all_measured(self, rates: Mapping[DeviceId, LinkRate]) -> None:
        """Take note of the rates that were measured on many devices at once."""
        self._links.update(rates)


def _probe(trace: BandwidthTrace) -> float:
    needed_s = trace.transfer_s(PROBE_BYTES, PROBE_AT_S)
    if needed_s <= -PROBE_AT_S:
        return PROBE_BYTES / needed_s
    carried = trace.carried_bytes(0.0) - trace.carried_bytes(PROBE_AT_S)
    return max(carried / -PROBE_AT_S, 1.0)  # at least 1 byte/s, for a link in outage all the time
