"""Makes the records of a round, those of a cohort's timeline column by column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.cost.energy import round_energy
from devices.vocabulary.plan import Broadcast, ClientUpdate, Timing, TrainingPlan
from simulator.log.cohort_timeline import CohortTimeline
from simulator.log.protocol import RunLog, log_clients
from simulator.log.records import ClientRecord, ClientTable, plan_fields
from traces.arrays import groups_of

Column = npt.NDArray[Any]  # of numbers, or of names as objects


def log_ended(
    log: RunLog, ended: Sequence[ClientRecord], timeline: CohortTimeline | None, *, now_s: float
) -> ClientTable:
    """Write down the plans of a round that closes, and return all of them in order of their ends.

    ``ended`` are the plans that were simulated one by one, in that order.
    """
    if timeline is None:
        for record in ended:
            log.client(record)
        return ClientTable.of(ended)
    table = client_table(timeline, now_s)
    if ended:
        table = _in_order(table, ClientTable.of(ended))
    log_clients(log, table)
    return table


def _in_order(one: ClientTable, other: ClientTable) -> ClientTable:
    """Merge two tables in order of the plans' ends: those who are late last, by device."""
    both = {name: np.concatenate([one.columns[name], other.columns[name]]) for name in one.columns}
    is_late = both["outcome"] == "late"
    by_device = np.where(is_late, both["device_id"], 0)
    order = np.lexsort((by_device, both["finished_s"], is_late))
    return ClientTable({name: values[order] for name, values in both.items()})


def client_table(timeline: CohortTimeline, closed_s: float) -> ClientTable:
    """Return what the devices of a timeline have done, as their round closes."""
    fleet, is_late = timeline.fleet, timeline.is_late
    order = np.concatenate([timeline.arrivals, timeline.late_rows])
    devices, work = timeline.devices[order], timeline.work_index[order]
    rows = [plan_fields(plan, cost) for plan, cost in timeline.works]
    columns: dict[str, Any] = {name: _column([row[name] for row in rows])[work] for name in rows[0]}
    done = {name: values[order] for name, values in amounts_done(timeline).items()}
    delivered = np.where(
        timeline.trained_from_s <= timeline.cut_s, _of_works(timeline, "download_bytes"), 0
    )[order] + np.where(is_late[order], 0, _of_works(timeline, "upload_bytes")[order])
    has_trained = (timeline.trained_from_s <= timeline.cut_s)[order]
    columns |= done | {
        "round": timeline.round,
        "device_id": devices,
        "profile": _column([p.name for p in fleet.profiles])[fleet.profile_index[devices]],
        "link": _column([link.name for link in fleet.link.pool])[fleet.link.index[devices]],
        "started_s": float(timeline.started_s),
        "memory_budget_bytes": fleet.memory_budget_bytes[devices],
        "num_examples": fleet.num_examples[devices],
        "outcome": np.where(is_late[order], "late", "aggregated").astype(object),
        "download_s": timeline.download_s[order],
        "train_s": timeline.train_s[order],
        "upload_s": timeline.upload_s[order],
        "finished_s": timeline.ended_s[order],
        "waiting_s": closed_s - timeline.ended_s[order],
        "lost_bytes": done["download_bytes"] + done["upload_bytes"] - delivered,
        "free_memory_bytes": np.where(has_trained, timeline.free_memory_bytes[order], 0),
    }
    columns |= _energies(timeline, columns)
    defaults = {f.name: f.default for f in fields(ClientRecord)}
    given = {name: columns.get(name, default) for name, default in defaults.items()}
    return ClientTable({name: _filled(values, len(devices)) for name, values in given.items()})


def amounts_done(timeline: CohortTimeline) -> dict[str, Column]:
    """(n,) each: bytes and FLOPs up to the end of each plan, of a phase that was cut a part."""
    down, up = _of_works(timeline, "download_bytes"), _of_works(timeline, "upload_bytes")
    flops = _of_works(timeline, "flops").astype(np.float64)
    cut_s = timeline.cut_s
    down_done = np.where(timeline.trained_from_s <= cut_s, down, 0)
    up_done = np.where(timeline.finished_s <= cut_s, up, 0)
    flops_done = np.where(timeline.upload_asked_s <= cut_s, flops, 0.0)
    for row in timeline.late_rows.tolist():
        device = timeline.fleet[int(timeline.devices[row])]
        cost = timeline.works[timeline.work_index[row]][1]
        if cut_s < timeline.trained_from_s[row]:
            trace, done = device.link.downlink.steps, down_done
            amount: float = cost.download_bytes
            from_s = timeline.download_from_s[row]
        elif cut_s < timeline.upload_asked_s[row]:
            trace, amount, from_s = device.speed, cost.train_s, timeline.trained_from_s[row]
            done = flops_done
        else:
            trace, amount, from_s = (
                device.link.uplink.steps, cost.upload_bytes, timeline.upload_from_s[row]
            )  # fmt: skip
            done = up_done
        if cut_s < from_s:  # still waiting for the first byte
            continue
        moved = min(trace.amount(cut_s) - trace.amount(float(from_s)), amount)
        done[row] = cost.flops * (moved / amount) if done is flops_done else round(moved)
    return {"download_bytes": down_done, "upload_bytes": up_done, "flops": flops_done}


def _of_works(timeline: CohortTimeline, name: str) -> Column:
    """(n,): a number of each plan's cost."""
    return _column([getattr(cost, name) for _, cost in timeline.works])[timeline.work_index]


def _energies(timeline: CohortTimeline, columns: Mapping[str, Any]) -> dict[str, Column]:
    """(n,) each: joules by what the device was doing, each at the watts of its profile."""
    found = {name: np.empty(len(timeline.devices)) for name in ("compute", "radio", "idle")}
    profile_of = timeline.fleet.profile_index[columns["device_id"]]
    for rows, k in groups_of(profile_of):
        energy = round_energy(
            timeline.fleet.profiles[k],
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


def updates_of(
    timeline: CohortTimeline, broadcast: Callable[[TrainingPlan], Broadcast]
) -> list[ClientUpdate]:
    """Return what the server receives in timing only: from every device what it was sent.

    ``broadcast`` gives what is sent with a plan; who is late sends nothing back.
    """
    rows = np.flatnonzero(~timeline.is_late)
    phases = (timeline.download_s, timeline.train_s, timeline.upload_s)
    seconds = zip(*(phase_s[rows].tolist() for phase_s in phases), strict=True)
    examples = timeline.fleet.num_examples[timeline.devices[rows]].tolist()
    plans = [timeline.plans[row] for row in rows.tolist()]
    return [
        ClientUpdate(plan, sent, sent.adapter, num_examples, math.nan, Timing(*spent_s))
        for plan, sent, num_examples, spent_s in zip(
            plans, map(broadcast, plans), examples, seconds, strict=True
        )
    ]
