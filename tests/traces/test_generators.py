"""Generators that a config can name: what they draw, from what, and what they refuse."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.generators.diurnal import MIN_SPAN_S
from traces.generators.patterns import PATTERNS
from traces.generators.radio import PathLossLink, shannon_link
from traces.generators.registry import AVAILABILITIES, LINKS, Diurnal, OnOff
from traces.generators.synthetic import MarkovLink
from traces.generators.technologies import TECHNOLOGIES
from traces.statistics import online_share_by_hour, spans

LINK_GENERATORS = [*map(MarkovLink, TECHNOLOGIES), PathLossLink(), PathLossLink(fading="none")]
AVAILABILITY_GENERATORS = [*map(Diurnal, PATTERNS), OnOff(600, 1800)]
NUM_DEVICES = 300
Phones = tuple[str, list[AvailabilityTrace]]


def of_device(number: int) -> np.random.Generator:
    return np.random.default_rng([5, number])


def fleet(generator: Diurnal | OnOff, num_devices: int = NUM_DEVICES) -> list[AvailabilityTrace]:
    return [generator.availability(of_device(number)) for number in range(num_devices)]


@pytest.fixture(scope="module", params=PATTERNS)
def phones(request: pytest.FixtureRequest) -> Phones:
    """Return a pattern and 1,200 devices with it."""
    return request.param, fleet(Diurnal(request.param), 1200)


def test_registries_name_each_class_by_its_kind() -> None:
    for registry in (LINKS, AVAILABILITIES):
        assert registry
        assert all(cls.kind == kind for kind, cls in registry.items())


@pytest.mark.parametrize("generator", LINK_GENERATORS, ids=repr)
def test_link_follows_from_its_own_generator_alone(generator: MarkovLink | PathLossLink) -> None:
    link, again, other = (generator.link(of_device(number)) for number in (3, 3, 4))
    for direction in ("downlink", "uplink"):
        rate = getattr(link, direction).rate_bytes_per_s
        assert (rate == getattr(again, direction).rate_bytes_per_s).all()
        assert rate.tolist() != getattr(other, direction).rate_bytes_per_s.tolist()


@pytest.mark.parametrize("generator", AVAILABILITY_GENERATORS, ids=repr)
def test_availability_follows_from_its_own_generator_alone(generator: Diurnal | OnOff) -> None:
    trace, again, other = (generator.availability(of_device(number)) for number in (3, 3, 4))
    assert trace.start_s.tolist() == again.start_s.tolist()
    assert trace.end_s.tolist() == again.end_s.tolist()
    assert trace.start_s.tolist() != other.start_s.tolist()


@pytest.mark.parametrize(
    "generator",
    [OnOff(20, 20), OnOff(600, 1800), OnOff(1, 1, period_s=3.0), OnOff(1e6, 1)],
    ids=repr,
)
def test_on_and_off_follow_each_other_span_by_span(generator: OnOff) -> None:
    for number in range(20):
        rng, at_s, expected = of_device(number), 0.0, []
        means_s = (generator.offline_s, generator.online_s)
        is_online = int(rng.random() < generator.online_s / sum(means_s))
        while at_s < generator.period_s:
            end_s = at_s + max(rng.exponential(means_s[is_online]), MIN_SPAN_S)
            if is_online:
                expected.append((at_s, min(end_s, generator.period_s)))
            at_s, is_online = end_s, 1 - is_online
        trace = generator.availability(of_device(number))
        assert list(zip(trace.start_s, trace.end_s, strict=True)) == expected


def test_markov_links_spread_around_the_mean_of_the_technology() -> None:
    model = TECHNOLOGIES["wifi"]
    links = [MarkovLink("wifi").link(of_device(number)) for number in range(400)]
    means = np.array([link.downlink.mean_bytes_per_s * 8 / 1e6 for link in links])
    # Five standard errors of a mean of 400.
    assert abs(means.mean() - model.down_mbps) < 5 * means.std(ddof=1) / 20
    # Randomness within a link adds little: a state lasts 30 of 300 s and differs by a factor 2.3.
    assert np.log(means).std(ddof=1) == pytest.approx(model.link_sigma, rel=0.25)


def test_scale_and_spread_are_those_asked_for() -> None:
    one, three = (
        MarkovLink("lte", scale=scale, spread=0.0).link(of_device(0)) for scale in (1.0, 3.0)
    )
    ratio = three.downlink.mean_bytes_per_s / one.downlink.mean_bytes_per_s
    assert ratio == pytest.approx(3, rel=1e-3)  # rates are whole kbit/s


def test_distances_are_uniform_between_the_nearest_and_the_farthest() -> None:
    generator = PathLossLink(shadowing_db=0.0, fading="none")
    rates = [generator.link(of_device(k)).uplink.rate_at(0.0) for k in range(2000)]
    near, middle, far = (shannon_link(d).uplink.rate_at(0.0) for d in (1100, 1550, 2000))
    assert far <= min(rates)
    assert max(rates) <= near
    # Half stand beyond the middle; five standard deviations of a share of 2000.
    assert abs(np.mean(np.array(rates) < middle) - 0.5) < 5 * 0.5 / math.sqrt(2000)


def test_shadowing_scatters_the_signal_by_8_db_alike_in_both_directions() -> None:
    generator = PathLossLink(nearest_m=1500, farthest_m=1500, fading="none")
    links = [generator.link(of_device(k)) for k in range(2000)]

    def snr_db(trace: BandwidthTrace) -> float:  # solved from W log2(1 + snr) with W = 900 kHz
        return 10 * math.log10(2 ** (trace.rate_at(0.0) * 8 / 900e3) - 1)

    up = np.array([snr_db(link.uplink) for link in links])
    down = np.array([snr_db(link.downlink) for link in links])
    # A standard deviation of n normal values has a standard error of 1 / sqrt(2 n).
    assert up.std(ddof=1) == pytest.approx(8.0, rel=5 / math.sqrt(4000))
    assert (down - up) == pytest.approx(23.0, abs=1e-6)  # 46 dBm against 23 dBm


def test_rayleigh_fading_draws_a_new_gain_for_each_block() -> None:
    link = PathLossLink(shadowing_db=0.0, block_s=0.5, duration_s=20.0).link(of_device(0))
    assert link.uplink.period_s == 20
    assert len(set(link.uplink.rate_bytes_per_s)) == len(link.uplink.time_s) == 40


def test_on_off_is_online_for_the_share_that_its_means_say() -> None:
    devices = fleet(OnOff(600, 1800))
    shares = np.array([device.fraction_online for device in devices])
    assert abs(shares.mean() - 0.25) < 5 * shares.std(ddof=1) / math.sqrt(NUM_DEVICES)
    online_s = np.concatenate([spans(device).online_s for device in devices])
    assert abs(online_s.mean() - 600) < 5 * 600 / math.sqrt(len(online_s))
    # An exponential with this mean has its median at ln 2 of it.
    assert np.median(online_s) == pytest.approx(600 * math.log(2), rel=5 / math.sqrt(len(online_s)))


PUBLISHED = {
    # pattern: share online at 4, 13, 18 and 22 h; over all; sessions a day; quartiles of devices
    "charging": ((0.357, 0.157, 0.163, 0.226), 0.232, 7.09, (0.104, 0.213, 0.354)),
    "charged": ((0.427, 0.314, 0.270, 0.310), 0.353, 9.55, (0.186, 0.350, 0.513)),
}


def test_daily_profile_of_phones_is_the_published_one(phones: Phones) -> None:
    pattern, devices = phones
    by_hour, overall, _, _ = PUBLISHED[pattern]
    shares = np.array([online_share_by_hour([device]) for device in devices])
    error = shares.std(axis=0, ddof=1) / math.sqrt(len(devices))
    # The pace has 7 coefficients for 24 hours: 0.02 on top of four standard errors of the draw.
    for hour, expected in zip((4, 13, 18, 22), by_hour, strict=True):
        assert abs(shares[:, hour].mean() - expected) < 4 * error[hour] + 0.02
    assert abs(shares.mean() - overall) < 4 * shares.mean(axis=1).std() / math.sqrt(len(devices))


def test_spans_of_phones_have_the_published_quantiles(phones: Phones) -> None:
    # The pace of the hours changes each length by a factor of up to 2.4, which differs from hour to
    # hour. That allows for 1.8 on a distribution whose quartiles differ by factors of 50 and 200.
    pattern, devices = phones
    found = [spans(device) for device in devices]
    for state in ("online_s", "offline_s"):
        lengths_s = np.concatenate([getattr(one, state) for one in found])
        expected = getattr(PATTERNS[pattern], state)[3:8]  # p25, p50, p75, p90, p95
        for length_s, share in zip(expected, (0.25, 0.5, 0.75, 0.9, 0.95), strict=True):
            assert 1 / 1.8 < np.quantile(lengths_s, share) / length_s < 1.8


def test_phones_flap_as_often_and_differ_as_much_as_published(phones: Phones) -> None:
    pattern, devices = phones
    _, _, sessions, quartiles = PUBLISHED[pattern]
    counts = np.array([len(spans(device).online_s) / 7 for device in devices])
    assert counts.mean() == pytest.approx(sessions, rel=0.15)
    shares = [device.fraction_online for device in devices]
    # Quartiles of 1,200 devices have a standard error near 0.01.
    assert np.quantile(shares, (0.25, 0.5, 0.75)) == pytest.approx(quartiles, abs=0.04)


def test_days_of_a_pattern_are_those_asked_for() -> None:
    assert Diurnal(num_days=2).availability(of_device(0)).period_s == 2 * 86400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MarkovLink("6g"), r"technology must be one of wifi, .*, 3g, got '6g'"),
        (lambda: MarkovLink("lte", scale=0), "scale must be above 0 and finite, got 0"),
        (lambda: MarkovLink("lte", spread=-1), r"spread must be in \[0, 5\], got -1"),
        (
            lambda: MarkovLink("lte", duration_s=math.inf),
            "duration_s must be above 0 and",
        ),
        (lambda: PathLossLink(nearest_m=9e3), "nearest_m must be at most farthest_m"),
        (lambda: PathLossLink(shadowing_db=-1), r"shadowing_db must be in \[0, 50\], got -1"),
        (lambda: PathLossLink(fading="rice"), "fading must be one of rayleigh, none, got 'rice'"),
        (lambda: PathLossLink(block_s=0), "block_s must be above 0 and finite, got 0"),
        (lambda: Diurnal("nightly"), "pattern must be one of charging, charged, got 'nightly'"),
        (lambda: Diurnal(num_days=0), r"num_days must be in \[1, 3660\], got 0"),
        (lambda: OnOff(0, 5), "online_s must be at least 1 and finite, got 0"),
        (lambda: OnOff(5, math.nan), "offline_s must be at least 1 and finite, got nan"),
    ],
)
def test_what_a_generator_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
