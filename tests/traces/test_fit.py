"""Fitted generators draw what is like what they were fitted to."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.torture import LONG
from traces.arrays import FloatArray
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace
from traces.catalog import availability, drawn_devices, drawn_links, load_link, pool
from traces.formats import read_link
from traces.generators.diurnal_fit import fit_availability
from traces.generators.link_fit import fit_chain, fit_link
from traces.generators.link_model import LinkModel, RateChain
from traces.generators.model_file import model_text, read_model
from traces.generators.registry import Diurnal, OnOff
from traces.generators.synthetic import MarkovLink, synthetic_link
from traces.statistics import (
    autocorrelation,
    online_share_by_hour,
    outage_share,
    rate_quantiles,
    spans,
)

TRACES = Path(__file__).parents[2] / "../shared/traces"
FILES = ("mahimahi/*.csv", "ucc5g/*.csv", "fcc/*amazon.csv")
RECORDINGS = [sorted(TRACES.glob(f"bandwidth/{files}")) for files in FILES]
NUM_LINKS = 40
HOUR_S, DAY_S = 3600.0, 86400.0


def hand_made() -> BandwidthTrace:
    """Return a link that is down 10 s of 100, slow for 30 and fast for 60, a step a second."""
    mbit = np.tile(np.repeat([0.0, 2.0, 3.0, 20.0, 24.0], [10, 20, 10, 30, 30]), 20)
    return BandwidthTrace(np.arange(2000.0), mbit * 125_000, 2000.0)


SOURCES = {
    "hand-made": hand_made,
    "constant": lambda: BandwidthTrace.constant(5e5),
    "lte-driving": lambda: synthetic_link("lte-driving", 1, duration_s=3000).downlink,
    "5g": lambda: synthetic_link("5g", 2, duration_s=3000).downlink,
    "wifi in steps of 2.5 s": lambda: (
        synthetic_link("wifi", 1, duration_s=3000, step_s=2.5).downlink
    ),
    **{
        path.stem: lambda path=path: read_link(path, uplink_scale=1).downlink
        for paths in RECORDINGS
        for path in paths
    },
}
IN_TORTURE = {path.stem for paths in RECORDINGS for path in paths[1:]}
NAMES = [pytest.param(name, marks=LONG if name in IN_TORTURE else ()) for name in SOURCES]


@pytest.mark.parametrize("name", NAMES)
def test_long_run_of_a_fitted_link_is_exactly_its_source(name: str) -> None:
    source = SOURCES[name]()
    chain = fit_chain([source], float(np.median(np.diff([*source.time_s, source.period_s]))))
    share = chain.shares
    assert share.sum() == pytest.approx(1)
    assert chain.mean_bytes_per_s * share @ chain.rates.mean(axis=1) == pytest.approx(
        source.mean_bytes_per_s
    )
    # Condition 0 holds the steps in outage, if there are any.
    is_outage = chain.rates.mean(axis=1) < 0.01
    assert share[is_outage].sum() == pytest.approx(outage_share(source), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fitted_link_draws_mean_quantiles_outages_and_autocorrelation_of_its_source(
    name: str,
) -> None:
    source = SOURCES[name]()
    drawn = [link.downlink for link in drawn_links(fit_with_scale(source), NUM_LINKS)]

    def near(statistic: Callable[[BandwidthTrace], float], slack: float) -> None:
        values = np.array([statistic(trace) for trace in drawn])
        error = values.std(ddof=1) / math.sqrt(NUM_LINKS)
        assert abs(values.mean() - statistic(source)) < 5 * error + slack

    near(lambda trace: trace.mean_bytes_per_s, 1e-9 * source.mean_bytes_per_s)
    # The limit of an outage follows the mean of each drawn link, which varies a little.
    near(outage_share, 0.01)
    pooled = np.concatenate([trace.rate_bytes_per_s for trace in drawn])
    # The shares of time of one drawn link vary by chance, and so does their mean over all links.
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        rate = rate_quantiles(source, [share])[0]
        below = np.array([(t.rate_bytes_per_s <= rate * 1.02).mean() for t in drawn])
        under = np.array([(t.rate_bytes_per_s < rate * 0.98).mean() for t in drawn])
        error = 5 * max(below.std(ddof=1), under.std(ddof=1)) / math.sqrt(NUM_LINKS)
        # A condition's rates are 20 means of 5 % of it each: half a stratum on either side.
        assert under.mean() - error - 0.025 <= share <= below.mean() + error + 0.025
    assert len(pooled) == NUM_LINKS * len(drawn[0].rate_bytes_per_s)
    if len(source.rate_bytes_per_s) > 200:
        step_s = float(np.median(np.diff(source.time_s)))
        # The fit chooses among 7 windows and 20 memories, which cannot match all 9 lags exactly.
        for lag in (1, 5):
            near(lambda trace, lag=lag: autocorrelation(trace, lag * step_s), 0.12)


def fit_with_scale(source: BandwidthTrace) -> LinkModel:
    return fit_link("mine", [source], [source])


def test_several_links_keep_their_spread_and_their_mean() -> None:
    # Means 1 to 4 MB/s: the sample deviation of their logarithms.
    sources = [BandwidthTrace.constant(1e6 * k) for k in (1, 2, 3, 4)]
    model = fit_link("mine", sources, [])
    assert model.spread == pytest.approx(np.log([1, 2, 3, 4]).std(ddof=1))
    assert model.downlink.mean_bytes_per_s == 2.5e6
    assert model.uplink is None


def test_directions_of_a_drawn_link_get_better_and_worse_together() -> None:
    source = hand_made()
    link = fit_link("mine", [source], [source.scaled(0.5)]).link(np.random.default_rng(0))
    assert ((link.downlink.rate_bytes_per_s == 0) == (link.uplink.rate_bytes_per_s == 0)).all()


def test_link_that_carries_nothing_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="must carry something to be fitted"):
        fit_link("mine", [BandwidthTrace.constant(0.0)], [])
    with pytest.raises(ValueError, match="a fit needs at least one link, got none"):
        fit_link("mine", [], [])


def fleet(generator: Diurnal | OnOff, num_devices: int, seed: int = 1) -> list[AvailabilityTrace]:
    return [generator.availability(np.random.default_rng([seed, k])) for k in range(num_devices)]


def nights() -> list[AvailabilityTrace]:
    """Return devices online from 22 h (or up to 90 minutes later) for 8 hours, on 6 nights of 7."""
    return [
        AvailabilityTrace.of(
            [
                ((22 + late) * HOUR_S + d * DAY_S, (30 + late) * HOUR_S + d * DAY_S)
                for d in range(6)
            ],
            7 * DAY_S,
        )
        for late in (0, 0.5, 1, 1.5)
    ]


FLEETS = {
    "nights": nights,
    "charging": lambda: fleet(Diurnal("charging"), 300),
    "charged": lambda: fleet(Diurnal("charged"), 300),
    "on and off": lambda: fleet(OnOff(600, 3000), 40),
}


@pytest.mark.parametrize("name", FLEETS)
def test_fitted_devices_have_the_share_the_day_and_the_spans_of_their_source(name: str) -> None:
    source = FLEETS[name]()
    drawn = fleet(fit_availability(source), 300, seed=2)

    def by_hour(devices: list[AvailabilityTrace]) -> FloatArray:
        return np.array([online_share_by_hour([device]) for device in devices])

    own, new = by_hour(source), by_hour(drawn)
    # Both are samples. Besides, the model spreads starts over the hour, and has only 20 lengths.
    errors = [part.std(axis=0, ddof=1) ** 2 / len(part) for part in (own, new)]
    slack = 4 * np.sqrt(sum(errors)) + 0.03
    assert (np.abs(own.mean(axis=0) - new.mean(axis=0)) < slack).all()
    assert own.mean() == pytest.approx(new.mean(), abs=0.03)
    for state in ("online_s", "offline_s"):
        lengths = [
            np.concatenate([getattr(spans(device), state) for device in devices])
            for devices in (source, drawn)
        ]
        for share in (0.25, 0.5, 0.75, 0.95):
            # A span that the end of a drawn week cuts is joined to the one at its beginning.
            assert np.quantile(lengths[1], share - 0.05) <= np.quantile(lengths[0], share) * 1.01
            assert np.quantile(lengths[0], share) * 0.99 <= np.quantile(
                lengths[1], min(share + 0.05, 1)
            )


def test_spread_between_devices_is_found_again() -> None:
    # The spread of the log-odds of 300 devices has a standard error of 4 % of itself. A week of
    # uneven spans adds noise, which the fit subtracts as far as it can estimate it.
    for spread in (0.0, 0.8):
        model = fit_availability(fleet(Diurnal("charging"), 300))
        even = type(model)(
            model.online_s, model.offline_s, model.begins, spread, num_days=model.num_days
        )
        found = fit_availability(fleet(even, 300)).spread
        assert found == pytest.approx(spread, abs=0.35)


def test_devices_that_never_change_keep_their_share() -> None:
    never, always = AvailabilityTrace.of([], DAY_S), AvailabilityTrace.of([(0, DAY_S)], DAY_S)
    model = fit_availability([never, always, always, *nights()[:1]])
    assert (model.never, model.always) == (0.25, 0.5)
    shares = np.array([device.fraction_online for device in fleet(model, 400)])
    for kept, share in ((0, 0.25), (1, 0.5)):
        assert abs((shares == kept).mean() - share) < 5 * math.sqrt(share * (1 - share) / 400)
    with pytest.raises(ValueError, match="needs a device that goes online and offline, got 2 dev"):
        fit_availability([never, always])


def link_toml(tmp_path: Path, name: str = "mine") -> Path:
    source = hand_made()
    path = tmp_path / f"{name}.toml"
    path.write_text(model_text(fit_link(name, [source], [source.scaled(0.25)]), ["here.csv"]))
    return path


def devices_toml(tmp_path: Path) -> Path:
    path = tmp_path / "phones.toml"
    path.write_text(model_text(fit_availability(nights()), ["here.csv"]))
    return path


def test_link_in_toml_draws_what_the_fit_draws(tmp_path: Path) -> None:
    source = hand_made()
    fitted = fit_link("mine", [source], [source.scaled(0.25)])
    read = read_model(link_toml(tmp_path))
    one, other = (model.link(np.random.default_rng(3)) for model in (fitted, read))
    for direction in ("downlink", "uplink"):
        expected = getattr(one, direction).rate_bytes_per_s
        assert getattr(other, direction).rate_bytes_per_s == pytest.approx(expected, rel=1e-9)


def test_devices_in_toml_are_those_of_the_fit(tmp_path: Path) -> None:
    one = fit_availability(nights()).availability(np.random.default_rng(3))
    other = read_model(devices_toml(tmp_path)).availability(np.random.default_rng(3))
    assert one.start_s == pytest.approx(other.start_s, rel=1e-9)


def test_toml_is_a_pool_and_its_first_link_a_link(tmp_path: Path) -> None:
    path = link_toml(tmp_path)
    members = pool(path)
    assert [link.name for link in members] == [f"mine-{k}" for k in range(1, 17)]
    assert load_link(path).downlink.rate_bytes_per_s.tolist() == (
        members[0].downlink.rate_bytes_per_s.tolist()
    )
    assert len(availability(devices_toml(tmp_path))) == 64


def test_more_devices_leave_the_first_as_they_are(tmp_path: Path) -> None:
    model = read_model(devices_toml(tmp_path))
    few, many = drawn_devices(model, 2), drawn_devices(model, 5)
    assert few["2"].start_s.tolist() == many["2"].start_s.tolist()


def test_uplink_that_was_not_measured_needs_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "down.toml"
    path.write_text(model_text(fit_link("down", [hand_made()], []), ["here.csv"]))
    with pytest.raises(ValueError, match=r"down\.toml: the uplink was not measured; give uplink_s"):
        pool(path)
    link = pool(path, uplink_scale=0.5)[0]
    assert link.uplink.mean_bytes_per_s == pytest.approx(0.5 * link.downlink.mean_bytes_per_s)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind =", "kind", r"expected TOML, found damage .*line 2"),
        ('"link"', '"road"', "kind must be link or availability, found .*road"),
        ('"link"', '"availability"', "expected the keys num_days, .*, found no num_days"),
        ("step_s =", "steps =", "expected the keys step_s, .* found no step_s, 'steps'"),
        ("step_s = 1.0", "step_s = 'a'", "step_s must be a finite number, found '.a.'"),
        ("step_s = 1.0", "step_s = 1e9", "step_s must be above 0 and at most duration_s"),
        ("spread = 0.0", "spread = nan", "spread must be a finite number, found 'NaN'"),
        ("memory = ", "memory = 1", r"downlink: memory must be in \[0, 1\), got 1"),
        ("mean_mbps = ", "mean_mbps = -", "downlink: the mean must be a rate above 0, got -"),
        ("transition = [\n  [", "transition = [\n  [9.0, ", "downlink: transition must be rows of"),
        (
            "transition = [\n  [0",
            "transition = [\n  [9",
            "downlink: each row of transition must be",
        ),
        ("rates = [\n", "rates = [\n  [],\n", "downlink: rates must be rows of equally many numb"),
        (
            "rates = [\n  [0.0",
            "rates = [\n  [-1.0",
            "downlink: rates must be numbers of at least 0",
        ),
    ],
)
def test_wrong_toml_is_refused_with_its_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = link_toml(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"(?s)mine\.toml: " + message):
        read_model(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_days = 7", "num_days = 7.5", "num_days must be a whole number, found '7.5'"),
        ("num_days = 7", "num_days = 0", r"num_days must be in \[1, 3660\], got 0"),
        ("never = 0.0", "never = 1.5", "never and always must be shares of devices"),
        ("spread = 0.0", "spread = -1", r"spread must be in \[0, 10\], got -1"),
        ("begins = [", "begins = [1.0, ", "begins must be 24 numbers of at least 0"),
        ("online_s = [\n  [", "online_s = [\n  [-", "online_s must be numbers of at least 0.001 s"),
        ("online_s = [\n", "online_s = 5\nx = [\n", "expected the keys num_days, .* found 'x'"),
    ],
)
def test_wrong_toml_of_devices_is_refused_with_its_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = devices_toml(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"phones\.toml: " + message):
        read_model(path)


def test_toml_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be availability here, found link"):
        availability(link_toml(tmp_path))
    with pytest.raises(ValueError, match="kind must be link here, found availability"):
        pool(devices_toml(tmp_path))


def test_chain_by_hand_has_its_covariance() -> None:
    # There are two conditions with the rates 0 and 2. A chain that stays in one with probability
    # 0.75 has a covariance that halves with each step.
    rates = np.array([[0.0], [2.0]])
    chain = RateChain(1.0, np.array([[0.75, 0.25], [0.25, 0.75]]), rates, 0.0)
    assert chain.shares == pytest.approx([0.5, 0.5])
    assert chain.covariance([0, 1, 2]) == pytest.approx([1, 0.5, 0.25])
    # One condition with the rates 0 and 2, each kept with probability 0.5, has the same covariance.
    one = RateChain(1.0, np.ones((1, 1)), np.array([[0.0, 2.0]]), 0.5)
    assert one.covariance([0, 1, 2]) == pytest.approx([1, 0.5, 0.25])


def test_markov_link_of_a_config_is_a_source_too() -> None:
    source = MarkovLink("lte", duration_s=600).link(np.random.default_rng(0))
    model = fit_link("lte", [source.downlink], [source.uplink])
    assert model.duration_s == 600
    assert model.step_s == 1


def test_span_that_ends_just_before_midnight_begins_one_of_the_last_part() -> None:
    # -1e-12 % 86400 is 86400.0 in floats, which is past the last row of the table.
    rows = np.full((24, 1), DAY_S / 2)
    model = type(fit_availability(nights()))(rows - 1e-12, rows, np.eye(24)[0], num_days=2)
    for seed in range(50):
        assert model.availability(np.random.default_rng(seed)).period_s == 2 * DAY_S
