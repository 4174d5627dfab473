"""The devices that a comparison saw, in the one order that every figure shows them in."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.load import Run


def devices(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a device of any cohort (index device_id): profile, link, memory_budget_bytes.

    Sorted by rising budget. A device that was never drawn is left out.
    """
    drawn = {int(device) for run in runs for device in run.clients["device_id"]}
    drawn |= {device for run in runs for device, _ in sat_out(run)}
    fleet = runs[0].devices.set_index("device_id").loc[sorted(drawn)]
    columns = ["profile", "link", "memory_budget_bytes"]
    return fleet[columns].sort_values("memory_budget_bytes", kind="stable")


def sat_out(run: Run) -> list[tuple[int, int]]:
    """(device, round) of every device of a cohort that got no plan."""
    return [
        (int(event["device"]), int(event["round"]))
        for event in run.events()
        if event["event"] == "sat_out"
    ]
