"""The records of a round, those of a wave column by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.cost.energy import round_energy
from devices.vocabulary.plan import Broadcast, ClientUpdate, Timing
from simulator.log.bulk_round import Wave
from simulator.log.protocol import RunLog, log_clients
from simulator.log.records import ClientRecord, ClientTable, plan_fields

Column = npt.NDArray[Any]  # of numbers, or of names as objects


def log_ended(
    log: RunLog, ended: Sequence[ClientRecord], wave: Wave | None, *, now_s: float
) -> ClientTable:
    """Write down the plans of a round that closes, one by one or as a wave; all as a table."""
    for record in ended:
        log.client(record)
    if wave is None:
        return ClientTable.of(ended)
    table = client_table(wave, now_s)
    log_clients(log, table)
    return table


def client_table(wave: Wave, closed_s: float) -> ClientTable:
    """What the devices of a wave have done, as its round closes."""
    order, fleet = wave.arrivals, wave.fleet
    devices, work = wave.devices[order], wave.work_index[order]
    rows = [plan_fields(plan, cost) for plan, cost in wave.works]
    columns: dict[str, Any] = {name: _column([row[name] for row in rows])[work] for name in rows[0]}
    costs = [cost for _, cost in wave.works]
    phases = {"download_s": wave.download_s, "train_s": wave.train_s, "upload_s": wave.upload_s}
    columns |= {name: values[order] for name, values in phases.items()}
    columns |= {
        "round": wave.round,
        "device_id": devices,
        "profile": _column([p.name for p in fleet.profiles])[fleet.profile_index[devices]],
        "link": _column([link.name for link in fleet.link.pool])[fleet.link.index[devices]],
        "started_s": float(wave.started_s),
        "memory_budget_bytes": fleet.memory_budget_bytes[devices],
        "num_examples": fleet.num_examples[devices],
        "outcome": "aggregated",
        "finished_s": wave.finished_s[order],
        "waiting_s": closed_s - wave.finished_s[order],
        "download_bytes": _column([cost.download_bytes for cost in costs])[work],
        "upload_bytes": _column([cost.upload_bytes for cost in costs])[work],
        "free_memory_bytes": fleet.memory_budget_bytes[devices],
        "flops": _column([float(cost.flops) for cost in costs])[work],
    }
    columns |= _energies(wave, columns)
    defaults = {f.name: f.default for f in fields(ClientRecord)}
    given = {name: columns.get(name, default) for name, default in defaults.items()}
    return ClientTable({name: _filled(values, len(devices)) for name, values in given.items()})


def _energies(wave: Wave, columns: Mapping[str, Any]) -> dict[str, Column]:
    """Joules by what the device was doing, each at the watts of its profile."""
    found = {name: np.empty(len(wave.devices)) for name in ("compute", "radio", "idle")}
    profile_of = wave.fleet.profile_index[columns["device_id"]]
    for k in np.unique(profile_of).tolist():
        rows = profile_of == k
        energy = round_energy(
            wave.fleet.profiles[k],
            compute_s=columns["train_s"][rows],
            radio_s=columns["download_s"][rows] + columns["upload_s"][rows],
            idle_s=columns["waiting_s"][rows] + 0.0,
        )
        for name, values in found.items():
            values[rows] = getattr(energy, f"{name}_j")
    return {f"energy_{name}_j": values for name, values in found.items()}


def _column(values: Sequence[Any]) -> Column:
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def _filled(values: Any, count: int) -> Column:
    if isinstance(values, np.ndarray):
        return values
    return np.full(count, values, dtype=object if isinstance(values, str) else None)


def updates_of(wave: Wave, broadcasts: Sequence[Broadcast]) -> list[ClientUpdate]:
    """What the server receives in timing only: of every device what it was sent."""
    seconds = zip(
        wave.download_s.tolist(), wave.train_s.tolist(), wave.upload_s.tolist(), strict=True
    )
    examples = wave.fleet.num_examples[wave.devices].tolist()
    return [
        ClientUpdate(plan, broadcast, broadcast.adapter, num_examples, math.nan, Timing(*spent_s))
        for plan, broadcast, num_examples, spent_s in zip(
            wave.plans, broadcasts, examples, seconds, strict=True
        )
    ]
