"""Units that are unlikely are said, with those that would explain the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.bandwidth import BandwidthTrace
from traces.catalog import links, load_link
from traces.formats import read_link
from traces.importers.plausible import PLAUSIBLE, unlikely_units
from traces.importers.result import Recording
from traces.units import BYTES_PER_S_PER_MBPS

TRACES = Path(__file__).parents[3] / "shared/traces/bandwidth"


def steady(mbps: float, step_s: float, *, num_steps: int = 100) -> BandwidthTrace:
    """Return a link whose rate is 0 in every third step and else near ``mbps``."""
    at_s = np.arange(num_steps) * step_s
    rates = mbps * np.where(np.arange(num_steps) % 3, 1.0, 0.0)
    return BandwidthTrace(at_s, rates * BYTES_PER_S_PER_MBPS, num_steps * step_s)


@pytest.mark.parametrize(
    ("mbps", "step_s", "words"),
    [
        (2641, 500, "2,641 Mbit/s down in steps of 500 s for 13.9 h: milliseconds and kbit/s? "
         "If so, import it as csv under the header time_ms,downlink_kbps"),
        (12, 1000, "12 Mbit/s down in steps of 1000 s for 27.8 h: milliseconds? If so, import it "
         "as csv under the header time_ms,downlink_mbps"),
        (5200, 1, "5,200 Mbit/s down in steps of 1 s for 100 s: kbit/s? If so, import it as csv "
         "under the header time_s,downlink_kbps"),
        (900_000, 1, "900,000 Mbit/s down in steps of 1 s for 100 s: bytes/s? If so, import it as "
         "csv under the header time_s,downlink_bytes_per_s"),
        (0.004, 1, "0.004 Mbit/s down in steps of 1 s for 100 s: Gbit/s? If so, import it as csv "
         "under the header time_s,downlink_gbps"),
    ],
)  # fmt: skip
def test_the_likely_units_are_named_with_their_columns(
    mbps: float, step_s: float, words: str
) -> None:
    assert unlikely_units(Recording("x", steady(mbps, step_s))) == (words,)


def test_each_direction_is_judged_by_itself() -> None:
    link = Recording("x", steady(12, 1), steady(3000, 1))
    (said,) = unlikely_units(link)
    assert said.startswith("3,000 Mbit/s up in steps of 1 s")
    assert said.endswith("time_s,uplink_kbps")


@pytest.mark.parametrize(
    ("mbps", "step_s", "num_steps"),
    [(0.02, 1, 100), (1900, 1, 100), (5, 60, 100), (5, 1, 300_000), (5, 1e6, 1)],
)
def test_what_no_other_unit_explains_is_left_in_peace(
    mbps: float, step_s: float, num_steps: int
) -> None:
    trace = steady(mbps, step_s, num_steps=max(num_steps, 2))
    if num_steps == 1:  # a constant rate, whatever the length of the recording
        trace = BandwidthTrace(np.zeros(1), np.array([mbps * BYTES_PER_S_PER_MBPS]), step_s)
    assert unlikely_units(Recording("x", trace)) == ()


@pytest.mark.parametrize("name", links())
def test_bundled_links_are_plausible(name: str) -> None:
    link = load_link(name)
    assert unlikely_units(Recording(name, link.downlink, link.uplink)) == ()


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real recordings are not beside this checkout")
def test_real_recordings_are_plausible() -> None:
    files = [file for folder in ("mahimahi", "ucc5g", "fcc") for file in TRACES.glob(f"{folder}/*")]
    assert len(files) > 80
    for file in files:
        link = read_link(file, uplink_scale=1.0)
        assert unlikely_units(Recording(file.stem, link.downlink, link.uplink)) == (), file


def test_every_range_says_what_it_is_taken_from() -> None:
    for quantity, plausible in PLAUSIBLE.items():
        assert plausible.least < plausible.most, quantity
        assert len(plausible.source) > 20
