"""A round that nothing can cut short, in closed form: all devices at once, and no process for any.

It stands in for the processes of ``client.py`` in a timing-only run, and leaves the same events in
the same order, and the same records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from algorithms.strategy import LinkRate
from devices.cost.model import Cost
from devices.fleet.fleet import Fleet
from devices.vocabulary.plan import DeviceId, TrainingPlan
from simulator.log.records import Event
from traces.arrays import FloatArray, IntArray

PHASES = ("download_started", "training_started", "upload_started", "update_received")


@dataclass(frozen=True, eq=False)
class Wave:
    """Plans handed out together, one a device; arrays are (n,), in rising order of device.

    Every plan is one of ``works`` but for its device: a plan, and what it costs on one profile.
    """

    fleet: Fleet
    round: int
    started_s: float
    plans: Sequence[TrainingPlan]
    devices: IntArray
    works: Sequence[tuple[TrainingPlan, Cost]]
    work_index: IntArray
    trained_from_s: FloatArray  # instants
    upload_from_s: FloatArray
    finished_s: FloatArray

    @cached_property
    def download_s(self) -> FloatArray:
        """Seconds of each download."""
        return self.trained_from_s - self.started_s

    @cached_property
    def train_s(self) -> FloatArray:
        """Seconds of each training."""
        return self.upload_from_s - self.trained_from_s

    @cached_property
    def upload_s(self) -> FloatArray:
        """Seconds of each upload."""
        return self.finished_s - self.upload_from_s

    @cached_property
    def arrivals(self) -> IntArray:
        """Rows in order of arrival.

        At one instant SimPy resolves ties by who began to wait first, and so by the order in which
        the phases before ended; at last, by device.
        """
        return self._orders[2]

    @cached_property
    def _orders(self) -> tuple[IntArray, IntArray, IntArray]:
        """Rows by the end of the download, of the training and of the upload."""
        first = np.argsort(self.trained_from_s, kind="stable")
        second = first[np.argsort(self.upload_from_s[first], kind="stable")]
        return first, second, second[np.argsort(self.finished_s[second], kind="stable")]

    @cached_property
    def happenings(self) -> tuple[FloatArray, IntArray, IntArray]:
        """Instant, phase and row of all events after the downloads began, in order.

        At one instant the server receives last, since it wakes up after the devices have.
        """
        orders = self._orders
        instants = (self.trained_from_s, self.upload_from_s, self.finished_s)
        at_s = np.concatenate([times[order] for times, order in zip(instants, orders, strict=True)])
        order = np.argsort(at_s, kind="stable")
        phase = np.repeat(np.arange(1, len(PHASES)), len(self.devices))
        return at_s[order], phase[order], np.concatenate(orders)[order]

    def amounts(self, phase: int) -> list[tuple[str, float]]:
        """Of each work, what the event of a phase tells: bytes, or FLOPs."""
        match PHASES[phase]:
            case "download_started":
                return [("bytes", cost.download_bytes) for _, cost in self.works]
            case "training_started":
                return [("flops", cost.flops) for _, cost in self.works]
        return [("bytes", cost.upload_bytes) for _, cost in self.works]

    def events(self) -> Iterator[Event]:
        """What happens, one event after the other."""
        details = [[dict([told]) for told in self.amounts(phase)] for phase in range(len(PHASES))]
        devices, works = self.devices.tolist(), self.work_index.tolist()
        for device, work in zip(devices, works, strict=True):
            yield Event(self.started_s, PHASES[0], self.round, device, details[0][work])
        for at_s, phase, row in zip(*(column.tolist() for column in self.happenings), strict=True):
            told = details[phase][works[row]]
            yield Event(at_s, PHASES[phase], self.round, devices[row], told)

    @property
    def last_phases_s(self) -> tuple[float, float, float]:
        """Download, training and upload of the device that arrives last."""
        row = self.arrivals[-1]
        return float(self.download_s[row]), float(self.train_s[row]), float(self.upload_s[row])

    def link_rates(self) -> dict[DeviceId, LinkRate]:
        """What the server has measured of each link."""
        down, up = (
            np.array([cost.download_bytes for _, cost in self.works])[self.work_index],
            np.array([cost.upload_bytes for _, cost in self.works])[self.work_index],
        )
        rates = zip((down / self.download_s).tolist(), (up / self.upload_s).tolist(), strict=True)
        return dict(zip(self.devices.tolist(), map(LinkRate._make, rates), strict=True))
