"""Flows that share a capacity take as long as closed forms say."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from devices.fleet.fleet import Device
from simulator.engine.network import Flow, Network, SharedLinks, fair_rates, rates_of_one
from simulator.engine.server import simulate
from tests.simulator.small import Memory, make_device, make_federation
from traces.availability import AvailabilityTrace
from traces.bandwidth import BandwidthTrace, Link
from traces.steps import StepTrace

FAST = StepTrace.constant(1e9)


def steps(*pairs: tuple[float, float]) -> StepTrace:
    """Return a step trace of (length_s, value) that holds its last value."""
    edges_s = np.concatenate([[0.0], np.cumsum([float(length) for length, _ in pairs])])
    return StepTrace(edges_s[:-1], np.array([float(v) for _, v in pairs]), math.inf)


def play(flows: list[tuple[Any, ...]]) -> list[tuple[float, float]]:
    """Run flows of (start_s, bytes, own, shared[, cut_s]); return for each its end and the bytes
    that it carried."""
    env = simpy.Environment()
    network, ended = Network(env), {}

    def one(
        number: int,
        start_s: float,
        size: float,
        own: StepTrace,
        shared: Sequence[StepTrace],
        cut_s: float = math.inf,
    ) -> Iterator[Any]:
        yield env.timeout(start_s)
        flow = Flow(network, own, shared, size)
        is_whole = yield from flow.until(cut_s)
        ended[number] = (env.now, size if is_whole else flow.moved())
        flow.end()

    for number, given_flow in enumerate(flows):
        env.process(one(number, *given_flow))
    env.run()
    return [ended[number] for number in range(len(flows))]


def ends_s(flows: list[tuple[Any, ...]]) -> list[float]:
    return [end_s for end_s, _ in play(flows)]


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_n_equal_flows_on_one_capacity_end_together_after_n_times_one(count: int) -> None:
    capacity = StepTrace.constant(100.0)
    assert ends_s([(0, 50.0, FAST, [capacity])] * count) == pytest.approx(
        [count * 50 / 100] * count
    )


def test_a_flow_that_arrives_later_halves_the_rate_from_then_on() -> None:
    # The capacity is 100 B/s. A moves 300 B from 0 s: 100 B alone in 1 s, then 50 B/s. B moves its
    # 100 B from 1 s on at 50 B/s and ends at 3 s. A has 100 B left, is alone, and ends at 4 s.
    capacity = StepTrace.constant(100.0)
    flows = [(0, 300.0, FAST, [capacity]), (1, 100.0, FAST, [capacity])]
    assert ends_s(flows) == pytest.approx([4.0, 3.0])


def test_what_a_slow_link_leaves_is_the_others() -> None:
    # A takes 10 of 100 B/s. B and C share 90, so each moves its 90 B at 45 B/s in 2 s. D shares no
    # capacity with them.
    capacity = StepTrace.constant(100.0)
    slow = StepTrace.constant(10.0)
    flows = [
        (0, 100.0, slow, [capacity]),
        (0, 90.0, FAST, [capacity]),
        (0, 90.0, FAST, [capacity]),
        (0, 90.0, slow, []),
    ]
    assert ends_s(flows) == pytest.approx([10.0, 2.0, 2.0, 9.0])


def test_a_full_cell_leaves_its_share_of_the_server_to_others() -> None:
    # The server has 100 B/s. Two flows in a cell of 20 B/s get 10 each, so the third gets 80.
    server, cell = StepTrace.constant(100.0), StepTrace.constant(20.0)
    flows = [
        (0, 100.0, FAST, [cell, server]),
        (0, 100.0, FAST, [cell, server]),
        (0, 160.0, FAST, [server]),
    ]
    assert ends_s(flows) == pytest.approx([10.0, 10.0, 2.0])


def test_capacity_that_changes_is_shared_as_it_is_at_each_instant() -> None:
    # The capacity is 100 B/s for 1 s, 0 for 2 s, then 50 B/s. Two flows of 100 B have moved 50 B
    # each at 1 s, and need 2 s at 25 B/s for the rest, from 3 s on.
    capacity = steps((1, 100.0), (2, 0.0), (1, 50.0))
    assert ends_s([(0, 100.0, FAST, [capacity])] * 2) == pytest.approx([5.0, 5.0])


def test_own_links_that_change_hand_their_part_on_and_back() -> None:
    # The capacity is 100 B/s, and A's own link is down from 1 to 2 s. B moves 50 B in the first
    # second and 100 B in the second, and ends at 2 s. A moves 50 B, nothing, then 50 B at 100 B/s.
    capacity = StepTrace.constant(100.0)
    own = steps((1, 1e9), (1, 0.0), (1, 1e9))
    flows = [(0, 100.0, own, [capacity]), (0, 150.0, FAST, [capacity])]
    assert ends_s(flows) == pytest.approx([2.5, 2.0])


def test_a_flow_that_is_cut_frees_its_share() -> None:
    # Both have 50 B/s until A is cut at 1 s with 50 B. B then has 50 of its 150 B, and 100 B/s.
    capacity = StepTrace.constant(100.0)
    flows = [(0, 500.0, FAST, [capacity], 1.0), (0, 150.0, FAST, [capacity])]
    assert play(flows) == [pytest.approx((1.0, 50.0)), pytest.approx((2.0, 150.0))]


rates = st.floats(min_value=0.1, max_value=1e6)
arrivals = st.lists(
    st.tuples(
        st.floats(min_value=0, max_value=10),  # start
        st.floats(min_value=1, max_value=1e4),  # bytes
        st.floats(min_value=1, max_value=1e3),  # own rate
        st.booleans(),  # in the cell
    ),
    min_size=1,
    max_size=12,
)


@given(arrivals, st.floats(min_value=1, max_value=1e3), st.floats(min_value=1, max_value=1e3))
def test_no_capacity_carries_more_than_it_could_and_none_rests_while_all_wait(
    flows: list[tuple[float, float, float, bool]], cell: float, server: float
) -> None:
    cell_trace, server_trace = StepTrace.constant(cell), StepTrace.constant(server)
    own = [StepTrace.constant(rate) for _, _, rate, _ in flows]
    played = play(
        [
            (start_s, size, trace, [cell_trace, server_trace] if in_cell else [server_trace])
            for (start_s, size, _, in_cell), trace in zip(flows, own, strict=True)
        ]
    )
    first_s = min(start_s for start_s, *_ in flows)
    for members, capacity in (([True, False], server), ([True], cell)):
        carried = [
            (end_s, size)
            for (end_s, _), (_, size, _, in_cell) in zip(played, flows, strict=True)
            if in_cell in members
        ]
        if carried:
            busy_s = max(end_s for end_s, _ in carried) - first_s
            assert sum(size for _, size in carried) <= capacity * busy_s * (1 + 1e-9)
    for (end_s, _), (start_s, size, rate, in_cell) in zip(played, flows, strict=True):
        alone_s = size / min(rate, server, cell if in_cell else math.inf)
        worst = min(rate, server / len(flows), cell / len(flows) if in_cell else math.inf)
        assert start_s + alone_s * (1 - 1e-9) <= end_s <= start_s + size / worst * (1 + 1e-9)


@given(
    st.lists(st.sampled_from([0.0, 1 / 3, 1.0, 7.0]) | st.floats(0, 1e6), min_size=1, max_size=30),
    st.sampled_from([0.0, 1.0, 10 / 3]) | st.floats(0, 1e7),
)
def test_rates_on_one_capacity_are_those_on_many_to_the_bit(
    caps: list[float], capacity: float
) -> None:
    trace = StepTrace.constant(1.0)
    found = rates_of_one(np.array(caps), capacity).tolist()
    assert found == fair_rates(caps, [[trace]] * len(caps), {trace: capacity})


@given(st.lists(st.tuples(rates, st.sets(st.integers(0, 2))), min_size=1, max_size=9))
def test_rates_are_max_min_fair(flows: list[tuple[float, set[int]]]) -> None:
    """Every flow is held by its own link, or by a full capacity on which no other is faster."""
    traces = [StepTrace.constant(1.0) for _ in range(3)]
    capacities = dict(zip(traces, (10.0, 200.0, 3e5), strict=True))
    caps = [cap for cap, _ in flows]
    ways = [[traces[k] for k in sorted(way)] for _, way in flows]
    found = fair_rates(caps, ways, capacities)
    sharing = {
        trace: [rate for rate, way in zip(found, ways, strict=True) if trace in way]
        for trace in traces
    }
    for trace, taken in sharing.items():
        assert sum(taken) <= capacities[trace] * (1 + 1e-9)
    for rate, cap, way in zip(found, caps, ways, strict=True):
        assert rate <= cap
        is_held = any(
            sum(sharing[trace]) >= capacities[trace] * (1 - 1e-9)
            and rate >= max(sharing[trace]) * (1 - 1e-9)
            for trace in way
        )
        assert rate == cap or is_held


def shared(server_rate: float, **cells: Any) -> SharedLinks:
    trace = BandwidthTrace.constant(server_rate)
    return SharedLinks(server=Link("server", trace, trace), **cells)


def run(fleet: Sequence[Device], **given_keys: Any) -> Memory:
    log = Memory()
    simulate(make_federation(fleet, **given_keys), log)
    return log


def test_equal_devices_behind_one_server_link_each_take_as_long_as_all_together() -> None:
    alone = run([make_device(0)], rounds=1).clients[0]
    fleet = [make_device(k) for k in range(4)]  # 1e5 B/s each
    for record in run(fleet, rounds=1, shared_links=shared(1e5)).clients:
        assert record.download_s == pytest.approx(4 * alone.download_s)
        assert record.upload_s == pytest.approx(4 * alone.upload_s)
        assert record.download_bytes == alone.download_bytes


def test_a_shared_link_that_nothing_fills_changes_no_event() -> None:
    fleet = [make_device(k, rate_bytes_per_s=1e5 * (k + 1)) for k in range(3)]
    free, wide = run(fleet), run(fleet, shared_links=shared(1e12))
    for device_id in range(3):  # rounding may swap events of two devices
        (alone, beside) = (
            [event for event in log.events if event.device == device_id] for log in (free, wide)
        )
        assert [event.name for event in beside] == [event.name for event in alone]
        assert [event.at_s for event in beside] == pytest.approx([event.at_s for event in alone])


def test_a_device_that_goes_offline_leaves_its_share_to_the_other() -> None:
    alone = run([make_device(0)], rounds=1).clients[0]
    gone_s = alone.download_s
    leaves = AvailabilityTrace.of([(0.0, gone_s)], math.inf)
    fleet = [make_device(0, availability=leaves), make_device(1)]
    log = run(fleet, rounds=1, shared_links=shared(1e5))
    lost, kept = sorted(log.clients, key=lambda record: record.device_id)
    # Each has half the rate until the first leaves; then the other moves its second half at full
    # rate.
    assert lost.outcome == "offline"
    assert lost.download_bytes == pytest.approx(alone.download_bytes / 2, abs=1)
    assert kept.download_s == pytest.approx(1.5 * alone.download_s)


def test_a_cell_is_shared_by_its_own_devices_alone() -> None:
    trace = BandwidthTrace.constant(1e5)
    cells = SharedLinks(cells=(Link("home", trace, trace),), cell_index=np.array([0, 0, -1]))
    records = run([make_device(k) for k in range(3)], rounds=1, shared_links=cells).clients
    by_device = {record.device_id: record.download_s for record in records}
    assert by_device[0] == by_device[1] == pytest.approx(2 * by_device[2])


def test_the_same_run_twice_has_the_same_events() -> None:
    fleet = [make_device(k, rate_bytes_per_s=1e5 * (k + 1)) for k in range(5)]
    first, second = (run(fleet, shared_links=shared(1.5e5)).events for _ in range(2))
    assert repr(first) == repr(second)  # compared as text, since NaN is not equal to itself


def test_a_server_link_that_is_down_for_ever_loses_transfers_instead_of_hanging() -> None:
    records = run([make_device(0)], rounds=1, shared_links=shared(0.0)).clients
    assert [record.outcome for record in records] == ["lost"]
