"""A plan that was handed out, and what the server must remember to make use of its end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from devices.cost.model import Cost
from devices.fleet.fleet import Device
from devices.vocabulary.plan import Broadcast, Timing, TrainingPlan
from simulator.engine.seeds import stream_seed
from simulator.log.records import ClientRecord


@dataclass(frozen=True, eq=False)
class Assignment:
    """A plan on its way: what the server remembers of it until its end."""

    plan: TrainingPlan
    broadcast: Broadcast
    device: Device
    cost: Cost
    record: ClientRecord
    run_seed: int
    num_draws: int  # how often devices had been asked when this plan was made

    @cached_property
    def training_seed(self) -> int:
        """The seed of the device's batches."""
        return stream_seed(self.run_seed, "training", self.num_draws, self.plan.device_id)

    @cached_property
    def wire_seed(self) -> int:
        """The seed of what is drawn as the update is encoded."""
        return stream_seed(self.run_seed, "wire", self.num_draws, self.plan.device_id)

    @property
    def timing(self) -> Timing:
        """The seconds that the server has measured."""
        return Timing(self.record.download_s, self.record.train_s, self.record.upload_s)
