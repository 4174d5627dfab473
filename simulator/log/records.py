"""Defines what a run writes down: one flat record for each dispatched plan and each round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from devices.cost.energy import round_energy
from devices.cost.memory import FORMAT_BITS
from devices.cost.model import Cost, MemoryBreakdown
from devices.fleet.fleet import Device, Fleet
from devices.fleet.profile import DeviceProfile
from devices.tasks.task import Metric
from devices.vocabulary.plan import DeviceId, TrainingPlan
from traces.arrays import IntArray

Outcome = Literal["aggregated", "oom", "late", "offline", "crashed", "lost", "rejected"]
"""How a plan ended: merged; without the memory for it; too late; on a device that went away, or
crashed; with an upload that could not be carried; with an update that the server refused."""
NUM_UNMERGED = {f"num_{name}": name for name in get_args(Outcome) if name != "aggregated"}
"""The counts of a round's plans that were not merged, each with its outcome."""


Columns = Mapping[str, npt.NDArray[Any]]
"""The fields of n records by name, each (n,): numbers, or names as objects."""


_TYPES: Mapping[str, type] = {"int": np.int64, "float": np.float64}


def columns_of(kind: type, records: Sequence[Any]) -> Columns:
    """Return the fields of these records, all of one kind; each metric of a task is a column."""
    names = [one.name for one in fields(kind)]
    rows = list(zip(*map(attrgetter(*names), records), strict=True)) or [()] * len(names)
    columns: dict[str, npt.NDArray[Any]] = {}
    for one, values in zip(fields(kind), rows, strict=True):
        if one.name == "metrics":
            metrics = values[0] if values else {}
            columns |= {m.name: np.array([v[m] for v in values], np.float64) for m in metrics}
        else:
            columns[one.name] = np.array(values, _TYPES.get(str(one.type), object))
    return columns


@dataclass(frozen=True)
class DeviceRecord:
    """A device record describes one device of the fleet, whether or not it ever takes part."""

    device_id: int
    profile: str
    link: str
    memory_budget_bytes: int
    num_examples: int

    @classmethod
    def columns(cls, fleet: Fleet) -> Columns:
        """Return the records of a whole fleet."""
        profiles = np.array([profile.name for profile in fleet.profiles], dtype=object)
        links = np.array([link.name for link in fleet.link.pool], dtype=object)
        return {
            "device_id": np.arange(len(fleet)),
            "profile": profiles[fleet.profile_index],
            "link": links[fleet.link.index],
            "memory_budget_bytes": fleet.memory_budget_bytes,
            "num_examples": fleet.num_examples,
        }


@dataclass
class ClientRecord:
    """A client record tells of one plan on one device, and is filled in while the plan runs."""

    round: int
    device_id: int
    profile: str
    link: str
    started_s: float
    memory_budget_bytes: int
    peak_memory_bytes: int
    memory_weights_bytes: int
    memory_adapters_bytes: int
    memory_gradients_bytes: int
    memory_optimizer_bytes: int
    memory_activations_bytes: int
    memory_transient_bytes: int
    memory_head_bytes: int
    depth: int
    num_quantized_blocks: int
    num_absent_blocks: int
    weight_formats: str
    mean_weight_bits: float  # mean over the blocks that are on the device
    num_terms_held: int
    num_terms_trained: int
    num_terms_uploaded: int
    mean_upload_bits: float  # mean over the uploaded terms
    num_examples: int
    forward_share: float  # of the training time, as planned; the rest is optimizer and overhead
    backward_share: float
    quantize_share: float  # packing and unpacking
    outcome: Outcome = "late"
    download_s: float = 0.0
    train_s: float = 0.0
    upload_s: float = 0.0
    finished_s: float = 0.0
    offline_s: float = 0.0  # time offline during the plan, after which the device went on
    waiting_s: float = 0.0  # from its end to the device's next plan, or to the round's close
    staleness: int = 0  # number of aggregations between its broadcast and its own merge
    download_bytes: int = 0
    upload_bytes: int = 0
    lost_bytes: int = 0  # those of both that were transferred in vain, since a transfer was cut
    free_memory_bytes: int = 0  # when training began, or could not begin
    num_shrinks: int = 0  # number of plans that were replaced by smaller ones
    battery_share: float = float("nan")  # when training began; NaN on mains
    flops: float = 0.0
    energy_compute_j: float = 0.0
    energy_radio_j: float = 0.0
    energy_idle_j: float = 0.0
    train_loss: float = float("nan")

    @classmethod
    def open(
        cls,
        device: Device,
        *,
        num_examples: int,
        planned: Mapping[str, Any],
        dispatched: tuple[int, float],
    ) -> ClientRecord:
        """Return the record of a plan dispatched in this round at this instant, in s.

        ``planned`` has the fields that the plan decides.
        """
        round_number, now_s = dispatched
        return cls(
            round=round_number,
            device_id=device.device_id,
            profile=device.profile.name,
            link=device.link.name,
            started_s=now_s,
            memory_budget_bytes=device.memory_budget_bytes,
            num_examples=num_examples,
            **planned,
        )

    def replan(self, plan: TrainingPlan, cost: Cost) -> None:
        """Describe another plan in place of the one that was dispatched."""
        for name, value in plan_fields(plan, cost).items():
            setattr(self, name, value)

    def close(self, profile: DeviceProfile, now_s: float) -> None:
        """Fill in the waiting time, which ends now, and the energy that follows from it."""
        self.waiting_s = now_s - self.finished_s
        energy = round_energy(
            profile,
            compute_s=self.train_s,
            radio_s=self.download_s + self.upload_s,
            idle_s=self.waiting_s + self.offline_s,
        )
        self.energy_compute_j = energy.compute_j
        self.energy_radio_j = energy.radio_j
        self.energy_idle_j = energy.idle_j

    @property
    def energy_j(self) -> float:
        """Return the joules that the device spent from the dispatch to the end of its wait."""
        return self.energy_compute_j + self.energy_radio_j + self.energy_idle_j


@dataclass(eq=False, slots=True)
class PlanRow:
    """A plan row is what a plan leaves that nothing cuts short on its device.

    Its fields are those of a client record that the plan and its device do not decide. Many rows
    are written together, as columns.
    """

    plan: TrainingPlan
    cost: Cost
    profile: DeviceProfile
    round: int
    device_id: DeviceId
    started_s: float
    num_examples: int
    outcome: Outcome = "late"
    download_s: float = 0.0
    train_s: float = 0.0
    upload_s: float = 0.0
    finished_s: float = 0.0
    waiting_s: float = 0.0
    staleness: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    lost_bytes: int = 0
    free_memory_bytes: int = 0
    flops: float = 0.0
    train_loss: float = math.nan

    def close(self, profile: DeviceProfile, now_s: float) -> None:
        """Fill in the waiting time, which ends now."""
        self.waiting_s = now_s - self.finished_s


Ended = ClientRecord | PlanRow
"""The record of a plan that has ended, in either form."""

_MEMORY_PARTS = [(f"memory_{one.name}_bytes", one.name) for one in fields(MemoryBreakdown)]


def plan_fields(plan: TrainingPlan, cost: Cost) -> dict[str, Any]:
    """Return what a plan decides, as columns of a client record."""
    terms = plan.terms
    num_present = int(np.count_nonzero(plan.present))
    num_uploaded = int(np.count_nonzero(terms.upload_bits))
    memory = {name: getattr(cost.memory, part) for name, part in _MEMORY_PARTS}
    return memory | {
        "peak_memory_bytes": cost.memory.total,
        "depth": plan.depth,
        "num_quantized_blocks": plan.num_quantized_blocks,
        "num_absent_blocks": plan.num_blocks - num_present,
        "weight_formats": ",".join(plan.weight_formats),
        "mean_weight_bits": sum(FORMAT_BITS[f] for f in plan.weight_formats) / num_present,
        "forward_share": cost.step.forward_s / sum(cost.step),
        "backward_share": cost.step.backward_s / sum(cost.step),
        "quantize_share": cost.step.quantize_s / sum(cost.step),
        "num_terms_held": int(np.count_nonzero(terms.held)),
        "num_terms_trained": int(np.count_nonzero(terms.trained)),
        "num_terms_uploaded": num_uploaded,
        "mean_upload_bits": int(terms.upload_bits.sum()) / max(num_uploaded, 1),
    }


def item(values: npt.NDArray[Any], row: int) -> Any:
    """Return a value of a column as Python's own; one that is not known is always the same NaN."""
    value = values.item(row)
    return value if value == value else math.nan


@dataclass(frozen=True, eq=False)
class ClientTable:
    """A client table holds n client records in columns of length n."""

    columns: Columns

    @classmethod
    def of(cls, records: Sequence[ClientRecord]) -> ClientTable:
        """Return the table of these records."""
        return cls(columns_of(ClientRecord, records))

    def __len__(self) -> int:
        return len(self.columns["device_id"])

    def rows(self, chosen: slice | IntArray) -> ClientTable:
        """Return the table of some of the rows."""
        return ClientTable({name: values[chosen] for name, values in self.columns.items()})

    def record(self, row: int) -> ClientRecord:
        """Return one of the records."""
        return ClientRecord(**{name: item(values, row) for name, values in self.columns.items()})

    def records(self) -> Iterator[ClientRecord]:
        """Return one record after the other."""
        return map(self.record, range(len(self)))


@dataclass(frozen=True)
class RoundRecord:
    """A round record tells of one aggregation, or of the initial model (round 0)."""

    round: int
    version: int
    opened_s: float
    closed_s: float
    duration_s: float
    metrics: Mapping[Metric, float]  # the task's metrics; NaN where the model was not evaluated
    train_loss: float  # mean over the aggregated updates, weighted by examples
    num_cohort: int
    num_planned: int
    num_sat_out: int
    num_aggregated: int
    num_oom: int
    num_late: int
    num_offline: int
    num_crashed: int
    num_lost: int
    num_rejected: int
    num_shrunk: int
    waiting_s: float  # mean wait of the devices whose updates were merged as it closed
    download_bytes: int
    upload_bytes: int
    flops: float
    energy_j: float

    @property
    def score(self) -> float:
        """Return the task's first metric; NaN where the model was not evaluated."""
        return next(iter(self.metrics.values()), math.nan)


class RoundProgress(NamedTuple):
    """The progress of a round is what the server knows beside the plans that ended in it."""

    round: int
    version: int
    opened_s: float
    closed_s: float
    num_cohort: int
    num_planned: int


NO_DETAILS: Mapping[str, Any] = MappingProxyType({})


class Event(NamedTuple):
    """An event is something that happened at an instant of the simulated clock."""

    at_s: float
    name: str
    round: int
    device: int | None = None
    details: Mapping[str, Any] = NO_DETAILS
