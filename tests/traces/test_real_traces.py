"""Recordings that stand beside the project and are no part of it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from traces.bandwidth import Link
from traces.formats import read_link
from traces.generators.technologies import TECHNOLOGIES

TRACES = Path(__file__).parents[2] / "../shared/traces"
pytestmark = pytest.mark.skipif(
    not TRACES.is_dir(), reason="the real recordings do not stand beside this checkout"
)


def manifest() -> list[dict[str, str]]:
    """Return the rows of the manifest that name a time series."""
    path = TRACES / "bandwidth/manifest.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["step_s"]]


def recordings(pattern: str) -> list[Link]:
    return [read_link(path, uplink_scale=1.0) for path in sorted(TRACES.glob(pattern))]


def pooled_mean_mbps(links: list[Link], direction: str) -> float:
    traces = [getattr(link, direction) for link in links]
    carried = sum(trace.mean_bytes_per_s * trace.period_s for trace in traces)
    return carried * 8 / 1e6 / sum(trace.period_s for trace in traces)


def outage_share(links: list[Link]) -> float:
    """Return the share of seconds below 1 % of their recording's mean."""
    rates = [link.downlink.rate_bytes_per_s for link in links]
    return np.concatenate([rate < 0.01 * rate.mean() for rate in rates]).mean()


def test_manifest_lists_every_file_of_the_three_sources() -> None:
    listed = {row["file"] for row in manifest()}
    there = {
        f"bandwidth/{path.parent.name}/{path.name}"
        for source in ("mahimahi", "ucc5g", "fcc")
        for path in TRACES.glob(f"bandwidth/{source}/*.csv")
    }
    assert listed == there
    assert len(there) > 80


@pytest.mark.parametrize("row", manifest(), ids=lambda row: Path(row["file"]).stem)
def test_recording_reads_with_the_mean_and_length_of_the_manifest(row: dict[str, str]) -> None:
    link = read_link(TRACES / row["file"], uplink_scale=None if row["ul_mean_mbps"] else 0.5)
    down_mbps = link.downlink.mean_bytes_per_s * 8 / 1e6
    # Half a unit of the manifest's third decimal, and of the fourth in the FCC's files.
    assert down_mbps == pytest.approx(float(row["dl_mean_mbps"]), abs=0.00056)
    assert link.downlink.period_s == pytest.approx(float(row["duration_s"]))
    assert link.downlink.rate_bytes_per_s.min() * 8 / 1e6 == pytest.approx(
        float(row["dl_min_mbps"]), abs=0.00056
    )
    expected_up_mbps = float(row["ul_mean_mbps"] or 0.5 * down_mbps)
    assert link.uplink.mean_bytes_per_s * 8 / 1e6 == pytest.approx(expected_up_mbps, abs=0.00056)


def test_recording_without_uplink_asks_for_a_scale() -> None:
    with pytest.raises(ValueError, match=r"TMobile-LTE-driving\.csv, lines 2 to 475: uplink_mbps"):
        read_link(TRACES / "bandwidth/mahimahi/TMobile-LTE-driving.csv")


@pytest.mark.parametrize(
    ("technology", "pattern", "has_uplink"),
    [
        ("lte-driving", "bandwidth/mahimahi/*-LTE-driving*.csv", False),
        ("3g", "bandwidth/mahimahi/TMobile-UMTS-driving.csv", True),
        ("5g", "bandwidth/ucc5g/static_*.csv", False),
    ],
)
def test_table_of_the_generator_holds_the_figures_of_the_recordings(
    technology: str, pattern: str, has_uplink: bool
) -> None:
    model, links = TECHNOLOGIES[technology], recordings(pattern)
    assert pooled_mean_mbps(links, "downlink") == pytest.approx(model.down_mbps, rel=0.011)
    assert outage_share(links) == pytest.approx(model.outage_share, abs=0.0006)
    if has_uplink:
        assert pooled_mean_mbps(links, "uplink") == pytest.approx(model.up_mbps, rel=0.011)


def test_uplink_of_lte_driving_is_that_of_the_two_drives_that_measured_it() -> None:
    links = recordings("bandwidth/mahimahi/ATT-LTE-driving*.csv")
    expected = pytest.approx(TECHNOLOGIES["lte-driving"].up_mbps, rel=0.011)
    assert pooled_mean_mbps(links, "uplink") == expected
