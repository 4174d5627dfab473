"""Finds the devices that took part in runs, in the order of all figures, and their absences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from analysis.runs.files import RunError
from analysis.runs.load import Run


def devices(runs: Sequence[Run], only: Sequence[int] = ()) -> pd.DataFrame:
    """Return a row for each device of any cohort: profile, link, memory_budget_bytes.

    The index is the device, by rising budget. A device that was never drawn is left out, and so are
    all but those in ``only`` where it names any. Raises RunError where none is left.
    """
    drawn = {int(device) for run in runs for device in run.clients["device_id"]}
    drawn |= {device for run in runs for device, _ in sat_out(run)}
    if only and not drawn & set(only):
        those = f"{min(drawn)} to {max(drawn)}" if drawn else "none did"
        raise RunError(
            f"the devices must be some of those that took part ({those}), "
            f"got {', '.join(map(str, only))}"
        )
    shown = sorted(drawn & set(only) if only else drawn)
    fleet = runs[0].devices.set_index("device_id").loc[shown]
    columns = ["profile", "link", "memory_budget_bytes"]
    return fleet[columns].sort_values("memory_budget_bytes", kind="stable")


def sat_out(run: Run) -> list[tuple[int, int]]:
    """Return (device, round) for every device of a cohort that got no plan."""
    return [
        (int(event["device"]), int(event["round"]))
        for event in run.events()
        if event["event"] == "sat_out"
    ]


def offline_pauses(run: Run) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """Return by device and round of its plan when it was offline with a plan: (from, until), in s.

    A device that did not come back to its work is away until its plan ends.
    """
    if not (run.clients.get("offline_s", pd.Series(dtype=float)) > 0).any():
        return {}
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    keys = zip(run.clients["device_id"], run.clients["round"], strict=True)
    ends_s = dict(zip(keys, run.clients["finished_s"], strict=True))
    left_s: dict[tuple[int, int], float] = {}
    for event in run.events():
        key = (event["device"], event["round"])
        if event["event"] == "went_offline":
            left_s[key] = event["at_s"]
        elif event["event"] == "came_back":
            found[key].append((left_s.pop(key), event["at_s"]))
    for key, at_s in left_s.items():
        if ends_s[key] > at_s:
            found[key].append((at_s, ends_s[key]))
    return dict(found)
