import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import exp1

from tests.torture import some
from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace
from traces.catalog import DATA
from traces.generators.radio import Channel, RayleighFading, shannon_link
from traces.generators.synthetic import synthetic_link, synthetic_pool, write_bundle
from traces.generators.technologies import TECHNOLOGIES

PROJECT = Path(__file__).parents[2]
NUM_LINKS = 200
technologies = pytest.mark.parametrize("technology", some(TECHNOLOGIES, 3))
with_outages = pytest.mark.parametrize(
    "technology", [name for name, model in TECHNOLOGIES.items() if model.outage_share]
)


def mbps(trace: BandwidthTrace) -> FloatArray:
    return trace.rate_bytes_per_s * 8 / 1e6


def rates_mbps(technology: str, direction: str) -> FloatArray:
    """Return the rates (NUM_LINKS, 300) of independent links in Mbit/s."""
    links = [synthetic_link(technology, seed) for seed in range(NUM_LINKS)]
    return np.array([mbps(getattr(link, direction)) for link in links])


def assert_near(values: FloatArray, expected: float) -> None:
    """Assert that a mean of independent values is within 5 standard errors of its expectation.

    By the central limit theorem that fails by chance once in two million; seeds are fixed.
    """
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error
    assert error < 0.05 * expected, "too few values to tell"


@technologies
@pytest.mark.parametrize("direction", ["downlink", "uplink"])
def test_mean_rate_is_that_of_the_table(technology: str, direction: str) -> None:
    model = TECHNOLOGIES[technology]
    expected = model.down_mbps if direction == "downlink" else model.up_mbps
    assert_near(rates_mbps(technology, direction).mean(axis=1), expected)


@technologies
def test_rates_vary_as_states_and_scatter_say(technology: str) -> None:
    # With levels f of mean 1 and log-normal factors g of mean 1: E[(f g)^2] = E[f^2] exp(sigma^2).
    model = TECHNOLOGIES[technology]
    share, level = np.array([(state.share, state.level) for state in model.states]).T
    square_of_levels = (share * level**2).sum() / (share * level).sum() ** 2
    expected = model.down_mbps**2 * square_of_levels * math.exp(model.scatter**2)
    assert_near((rates_mbps(technology, "downlink") ** 2).mean(axis=1), expected)


@technologies
def test_outages_take_the_share_of_the_table_in_both_directions_at_once(technology: str) -> None:
    down, up = (rates_mbps(technology, direction) == 0 for direction in ("downlink", "uplink"))
    assert (down == up).all()
    if TECHNOLOGIES[technology].outage_share:
        values = down.mean(axis=1)
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - TECHNOLOGIES[technology].outage_share) < 5 * error
    else:
        assert not down.any()


@with_outages
def test_outages_last_as_long_as_the_table_says(technology: str) -> None:
    states = TECHNOLOGIES[technology].states
    is_down = mbps(synthetic_link(technology, 0, duration_s=100_000).downlink) == 0
    changes = np.flatnonzero(np.diff(np.r_[False, is_down, False].astype(int)))
    lengths_s = np.diff(changes)[::2]
    # A state is drawn in proportion to share / dwell, and an outage may be drawn again at its end.
    drawn = np.array([state.share / state.dwell_s for state in states])
    (outage,) = (index for index, state in enumerate(states) if state.level == 0)
    expected_s = states[outage].dwell_s / (1 - drawn[outage] / drawn.sum())
    assert_near(lengths_s, expected_s)


@technologies
def test_shares_of_the_states_are_all_of_the_time(technology: str) -> None:
    assert sum(state.share for state in TECHNOLOGIES[technology].states) == pytest.approx(1)


@technologies
def test_same_seed_gives_the_same_link_and_another_gives_another(technology: str) -> None:
    link, again, other = (synthetic_link(technology, seed) for seed in (7, 7, 8))
    assert link.name == f"{technology}-7"
    for direction in ("downlink", "uplink"):
        rate = getattr(link, direction).rate_bytes_per_s
        assert (rate == getattr(again, direction).rate_bytes_per_s).all()
        assert (rate != getattr(other, direction).rate_bytes_per_s).any()


def test_technologies_do_not_share_their_luck() -> None:
    levels = [mbps(synthetic_link(name, 3).downlink) for name in ("lte", "lte-driving")]
    # Two unrelated series of 300 rates correlate above 0.5 only if both stay long in few states.
    assert abs(np.corrcoef(levels)[0, 1]) < 0.5


def test_step_and_duration_are_those_asked_for() -> None:
    link = synthetic_link("wifi", 1, duration_s=60, step_s=2.5)
    assert link.downlink.period_s == link.uplink.period_s == 60
    assert link.downlink.time_s.tolist() == np.arange(0, 60, 2.5).tolist()


@technologies
def test_pool_spreads_links_around_the_mean_of_the_technology(technology: str) -> None:
    model = TECHNOLOGIES[technology]
    means = np.array([mbps(link.downlink).mean() for link in synthetic_pool(technology, 400)])
    # The mean over 300 s of one link varies by chance; its relative variance is that of the log.
    over_time = np.log(rates_mbps(technology, "downlink").mean(axis=1)).var(ddof=1)
    # Levels average to 1 exactly, so only that chance moves the mean of the pool.
    error = math.sqrt(over_time * (means**2).sum()) / len(means)
    assert abs(means.mean() - model.down_mbps) < 5 * error
    # A standard deviation estimated from n normal values has a standard error of 1 / sqrt(2 n).
    expected = math.sqrt(model.link_sigma**2 + over_time)
    assert np.log(means).std(ddof=1) == pytest.approx(expected, rel=5 / math.sqrt(2 * 200))


def test_unknown_technology_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"technology must be one of wifi, .*, 3g, got '6g'"):
        synthetic_link("6g", 1)


@pytest.mark.parametrize("step_s", [0.0, -1.0, 301.0, math.nan])
def test_step_outside_the_duration_is_refused(step_s: float) -> None:
    with pytest.raises(ValueError, match=r"step_s must be .*, got"):
        synthetic_link("wifi", 1, step_s=step_s)


@pytest.mark.parametrize(
    ("distance_m", "expected_mbps"), [(1100, 2.53), (1500, 1.37), (2000, 0.64)]
)
def test_shannon_uplink_at_haflqs_distances(distance_m: float, expected_mbps: float) -> None:
    # By hand for 2000 m: 139.42 dB loss, noise -174 + 59.54 = -114.46 dBm, S/N = -1.96 dB.
    uplink = shannon_link(distance_m).uplink
    assert mbps(uplink)[0] == pytest.approx(expected_mbps, abs=0.005)
    assert len(uplink.time_s) == 1


def test_shannon_downlink_has_the_power_of_a_base_station() -> None:
    snr_db = 46 - (128.1 + 37.6 * math.log10(1.5)) - (-174 + 10 * math.log10(900e3))
    expected = 0.9 * math.log2(1 + 10 ** (snr_db / 10))
    assert mbps(shannon_link(1500).downlink)[0] == pytest.approx(expected)
    same = shannon_link(1500, downlink=Channel())
    assert mbps(same.downlink)[0] == mbps(same.uplink)[0]


def test_fading_link_has_the_ergodic_capacity_of_a_rayleigh_channel() -> None:
    # E[log2(1 + snr g)] with g exponential of mean 1 is exp(1 / snr) E1(1 / snr) / ln 2.
    rates = mbps(shannon_link(1500, fading=RayleighFading(3, num_blocks=20_000)).uplink)
    snr_db = 23 - (128.1 + 37.6 * math.log10(1.5)) - (-174 + 10 * math.log10(900e3))
    snr = 10 ** (snr_db / 10)
    assert_near(rates, 0.9 * math.exp(1 / snr) * exp1(1 / snr) / math.log(2))


def test_fading_follows_its_seed_and_blocks() -> None:
    fading = RayleighFading(3, block_s=0.5, num_blocks=8)
    link, again = shannon_link(1500, fading=fading), shannon_link(1500, fading=fading)
    other = shannon_link(1500, fading=RayleighFading(4, block_s=0.5, num_blocks=8))
    assert (link.uplink.rate_bytes_per_s == again.uplink.rate_bytes_per_s).all()
    assert (link.uplink.rate_bytes_per_s != other.uplink.rate_bytes_per_s).all()
    assert link.uplink.time_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert link.uplink.period_s == 4


@pytest.mark.parametrize("distance_m", [0, -5, math.nan, math.inf])
def test_distance_that_is_none_is_refused(distance_m: float) -> None:
    with pytest.raises(ValueError, match="distance_m must be a number above 0, got"):
        shannon_link(distance_m)


def test_command_of_the_readme_remakes_the_bundled_files_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "traces.generators.synthetic", str(tmp_path / "data")]
    subprocess.run(command, cwd=PROJECT, check=True)
    remade = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert remade == {path.name: path.read_bytes() for path in DATA.glob("*.csv")}
    assert "python -m traces.generators.synthetic traces/data" in (DATA / "README.md").read_text()


def test_bundled_files_stay_small(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250_000
