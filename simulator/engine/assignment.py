"""Defines an assignment: a dispatched plan with what the server needs to use its result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from devices.cost.model import Cost
from devices.fleet.fleet import Device, Fleet
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import Broadcast, Timing, TrainingPlan
from simulator.engine.seeds import stream_seed
from simulator.log.records import Ended


@dataclass(eq=False, slots=True)
class Assignment:
    """An assignment holds what the server remembers of a dispatched plan until the plan ends."""

    plan: TrainingPlan
    broadcast: Broadcast
    fleet: Fleet
    profile: DeviceProfile  # the profile of its device in the power mode of the round
    cost: Cost
    record: Ended
    run_seed: int
    num_draws: int  # the number of times that devices had been asked when this plan was made

    @property
    def device(self) -> Device:
        """Return the device, which the fleet makes where it is first asked for."""
        device = self.fleet[self.plan.device_id]
        return device if device.profile is self.profile else replace(device, profile=self.profile)

    @property
    def training_seed(self) -> int:
        """Return the seed that the device draws its batches from."""
        return stream_seed(self.run_seed, "training", self.num_draws, self.plan.device_id)

    @property
    def wire_seed(self) -> int:
        """Return the seed of the random rounding in the encoded update."""
        return stream_seed(self.run_seed, "wire", self.num_draws, self.plan.device_id)

    @property
    def timing(self) -> Timing:
        """Return the seconds of each phase, as the server has measured them."""
        return Timing(self.record.download_s, self.record.train_s, self.record.upload_s)
