"""Makes the table of the plans that ended, column by column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from devices.cost.energy import round_energy
from devices.cost.model import Cost
from devices.fleet.fleet import Fleet
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import Broadcast, ClientUpdate, Timing, TrainingPlan
from simulator.log.cohort_timeline import CohortTimeline
from simulator.log.records import ClientRecord, ClientTable, Ended, PlanRow, plan_fields
from traces.arrays import IntArray, groups_of

T = TypeVar("T")
Column = npt.NDArray[Any]  # numbers, or names as objects


ROW_FIELDS = [f.name for f in fields(PlanRow) if f.name not in ("plan", "cost", "profile")]
_KINDS: dict[str, type] = {"float": np.float64, "int": np.int64, "DeviceId": np.int64}
ROW_KINDS = [_KINDS.get(str(f.type), object) for f in fields(PlanRow) if f.name in ROW_FIELDS]


def table_of(fleet: Fleet, ended: Sequence[Ended]) -> ClientTable:
    """Return the table of plans that ended one by one, in their order."""
    rows = [row for row in ended if isinstance(row, PlanRow)]
    if not rows:
        return ClientTable.of(cast(Sequence[ClientRecord], ended))
    table = _table_of_rows(fleet, rows)
    if len(rows) == len(ended):
        return table
    others = ClientTable.of([one for one in ended if isinstance(one, ClientRecord)])
    is_row = np.array([isinstance(one, PlanRow) for one in ended])
    order = np.empty(len(ended), dtype=np.int64)
    order[np.concatenate([np.flatnonzero(is_row), np.flatnonzero(~is_row)])] = np.arange(len(ended))
    return concatenated([table, others]).rows(order)


def concatenated(tables: Sequence[ClientTable]) -> ClientTable:
    """Return the rows of several tables, one table after the other."""
    if len(tables) == 1:
        return tables[0]
    names = tables[0].columns
    return ClientTable({name: np.concatenate([t.columns[name] for t in tables]) for name in names})


def in_order_of_ends(one: ClientTable, other: ClientTable) -> ClientTable:
    """Merge two tables in order of the plans' ends: those who are late last, by device."""
    both = concatenated([one, other])
    is_late = both.columns["outcome"] == "late"
    by_device = np.where(is_late, both.columns["device_id"], 0)
    return both.rows(np.lexsort((by_device, both.columns["finished_s"], is_late)))


def _table_of_rows(fleet: Fleet, rows: Sequence[PlanRow]) -> ClientTable:
    values = zip(*map(attrgetter(*ROW_FIELDS), rows), strict=True)
    columns: dict[str, Any] = {
        name: np.array(column, kind)
        for name, kind, column in zip(ROW_FIELDS, ROW_KINDS, values, strict=True)
    }
    profiles, profile_of = _distinct([row.profile for row in rows])
    costs, work = _distinct([row.cost for row in rows])
    planned = {id(row.cost): row.plan for row in rows}
    works = [(planned[id(cost)], cost) for cost in costs]
    return _whole(fleet, columns, works=(works, work), profiles=(profiles, profile_of))


def _distinct(values: Sequence[T]) -> tuple[list[T], IntArray]:
    """Return the different objects among n values, and (n,) the place of each among them."""
    found = {id(value): value for value in values}
    place = {key: k for k, key in enumerate(found)}
    return list(found.values()), np.array([place[id(value)] for value in values], dtype=np.int64)


def _whole(
    fleet: Fleet,
    columns: dict[str, Any],
    *,
    works: tuple[Sequence[tuple[TrainingPlan, Cost]], IntArray],
    profiles: tuple[Sequence[DeviceProfile], IntArray],
) -> ClientTable:
    """Return a table with all that follows from the device, the plan and the seconds of each row.

    ``works`` and ``profiles`` come with (n,) the place of each row's among them.
    """
    devices, (kinds, profile_of), (distinct, work) = columns["device_id"], profiles, works
    planned = [plan_fields(plan, cost) for plan, cost in distinct]
    columns |= {name: _column([one[name] for one in planned])[work] for name in planned[0]}
    columns |= {
        "profile": _column([profile.name for profile in kinds])[profile_of],
        "link": _column([link.name for link in fleet.link.pool])[fleet.link.index[devices]],
        "memory_budget_bytes": fleet.memory_budget_bytes[devices],
    }
    columns |= _energies(profiles, columns)
    defaults = {f.name: f.default for f in fields(ClientRecord)}
    given = {name: columns.get(name, default) for name, default in defaults.items()}
    return ClientTable({name: _filled(values, len(devices)) for name, values in given.items()})


def client_table(timeline: CohortTimeline, closed_s: float) -> ClientTable:
    """Return what the devices of a timeline have done, as their round closes."""
    fleet, is_late = timeline.fleet, timeline.is_late
    order = np.concatenate([timeline.arrivals, timeline.late_rows])
    devices, work = timeline.devices[order], timeline.work_index[order]
    done = {name: values[order] for name, values in amounts_done(timeline).items()}
    delivered = np.where(
        timeline.trained_from_s <= timeline.cut_s, _of_works(timeline, "download_bytes"), 0
    )[order] + np.where(is_late[order], 0, _of_works(timeline, "upload_bytes")[order])
    has_trained = (timeline.trained_from_s <= timeline.cut_s)[order]
    columns: dict[str, Any] = done | {
        "round": timeline.round,
        "device_id": devices,
        "started_s": float(timeline.started_s),
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
    profiles = fleet.profiles, fleet.profile_index[devices]
    return _whole(fleet, columns, works=(timeline.works, work), profiles=profiles)


def amounts_done(timeline: CohortTimeline) -> dict[str, Column]:
    """Return the bytes and FLOPs of each plan up to its end, (n,) each.

    Of a phase that was cut, the part that was done counts.
    """
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
        if cut_s < from_s:  # the cut came before the first byte
            continue
        moved = min(trace.amount(cut_s) - trace.amount(float(from_s)), amount)
        done[row] = cost.flops * (moved / amount) if done is flops_done else round(moved)
    return {"download_bytes": down_done, "upload_bytes": up_done, "flops": flops_done}


def _of_works(timeline: CohortTimeline, name: str) -> Column:
    """Return (n,): for each plan, the field ``name`` of its cost."""
    return _column([getattr(cost, name) for _, cost in timeline.works])[timeline.work_index]


def _energies(
    profiles: tuple[Sequence[DeviceProfile], IntArray], columns: Mapping[str, Any]
) -> dict[str, Column]:
    """Return the joules of each plan for computing, radio and idling, (n,) each.

    ``profiles`` are the distinct profiles, and the index (n,) of each plan's among them.
    """
    kinds, profile_of = profiles
    found = {name: np.empty(len(profile_of)) for name in ("compute", "radio", "idle")}
    for rows, k in groups_of(profile_of):
        energy = round_energy(
            kinds[k],
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
