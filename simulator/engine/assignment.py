"""A plan that was handed out, and what the server must remember to make use of its end."""

from __future__ import annotations

from dataclasses import dataclass

from devices.cost.model import Cost
from devices.fleet.fleet import Device
from devices.vocabulary.plan import Broadcast, Timing, TrainingPlan
from simulator.log.records import ClientRecord


@dataclass(frozen=True, eq=False)
class Assignment:
    """A plan on its way: what the server remembers of it until its end."""

    plan: TrainingPlan
    broadcast: Broadcast
    device: Device
    cost: Cost
    training_seed: int
    wire_seed: int
    record: ClientRecord

    @property
    def timing(self) -> Timing:
        """The seconds that the server has measured."""
        return Timing(self.record.download_s, self.record.train_s, self.record.upload_s)
