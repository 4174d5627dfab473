"""FedSA-LoRA averages A; B and the head stay on their device, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.fedsa_lora import FedSALoRA, OwnParts
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate, TrainingPlan
from devices.wire.messages import HEADER
from devices.wire.wire import download_bytes, encode_broadcast, upload_bytes
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import random_adapter, trained_update

FLEET = fleet_of([device()] * 4)
EXAMPLES = {0: 1, 1: 3, 2: 4, 3: 2}
STRATEGY = FedSALoRA(rank=3)
INITIAL = random_adapter(FLEET.model, 3, np.random.default_rng(0))


def plan_of(state: ServerState[OwnParts], device_id: int) -> TrainingPlan:
    (plan,) = STRATEGY.plan(state, FLEET, [device_id], np.random.default_rng(0))
    return plan


def update_of(state: ServerState[OwnParts], device_id: int, seed: int) -> ClientUpdate:
    plan = plan_of(state, device_id)
    rng = np.random.default_rng((seed, device_id))
    start = STRATEGY.broadcast(state, plan)
    return trained_update(plan, start, rng, num_examples=EXAMPLES[device_id])


def own_bytes(adapter: Adapter) -> list[bytes]:
    """Return the bytes of B of every layer, and of the head."""
    parts = [factors.b for factors in adapter.factors.values()]
    return [values.tobytes() for values in (*parts, *adapter.head.values())]


def test_a_device_goes_on_from_what_it_had_and_from_the_mean_of_a() -> None:
    state, own = STRATEGY.init(INITIAL), dict.fromkeys(range(4), own_bytes(INITIAL))
    for number, cohort in enumerate(((0, 1), (1, 2), (0, 1, 2))):
        updates = [update_of(state, device_id, number) for device_id in cohort]
        for update in updates:
            assert own_bytes(update.broadcast.adapter) == own[update.plan.device_id]
        state = STRATEGY.aggregate(state, updates)
        for update in updates:
            assert update.own is not None
            own[update.plan.device_id] = own_bytes(update.own)
        counts = np.array([EXAMPLES[device_id] for device_id in cohort])
        for device_id in range(4):
            got = STRATEGY.broadcast(state, plan_of(state, device_id)).adapter
            assert own_bytes(got) == own[device_id]
            for key, (a, _) in got.factors.items():
                ends = np.stack([update.adapter.factors[key].a for update in updates])
                mean = np.tensordot(counts / counts.sum(), ends.astype(np.float64), axes=1)
                np.testing.assert_allclose(a, mean, atol=1e-6)


def test_what_one_device_keeps_reaches_no_other() -> None:
    state = STRATEGY.init(INITIAL)
    updates = [update_of(state, device_id, 0) for device_id in (0, 1)]
    assert updates[0].own is not None
    rng = np.random.default_rng(5)
    spoiled = replace(updates[0], own=random_adapter(FLEET.model, 3, rng))
    clean = STRATEGY.aggregate(state, updates)
    dirty = STRATEGY.aggregate(state, [spoiled, updates[1]])
    for device_id in (1, 2, 3):
        plan = plan_of(clean, device_id)
        sent = [STRATEGY.broadcast(after, plan).adapter.digest for after in (clean, dirty)]
        assert sent[0] == sent[1]


def test_the_evaluated_model_has_the_mean_of_what_all_devices_keep() -> None:
    """The mean is also of devices that took part in earlier rounds alone."""
    state = STRATEGY.init(INITIAL)
    state = STRATEGY.aggregate(state, [update_of(state, 0, 0)])
    state = STRATEGY.aggregate(state, [update_of(state, 1, 1), update_of(state, 2, 1)])
    kept = [state.memory.kept[device_id] for device_id in range(3)]
    counts = np.array([EXAMPLES[device_id] for device_id in range(3)])
    for key, (_, b) in state.adapter.factors.items():
        ends = np.stack([part.b[key] for part in kept]).astype(np.float64)
        np.testing.assert_allclose(b, np.average(ends, axis=0, weights=counts), atol=1e-6)
    for name, values in state.adapter.head.items():
        ends = np.stack([part.head[name] for part in kept]).astype(np.float64)
        np.testing.assert_allclose(values, np.average(ends, axis=0, weights=counts), atol=1e-6)


def test_of_two_updates_of_one_device_the_later_one_stays() -> None:
    state = STRATEGY.init(INITIAL)
    updates = [update_of(state, 0, seed) for seed in range(2)]
    after = STRATEGY.aggregate(state, updates)
    assert updates[1].own is not None
    got = STRATEGY.broadcast(after, plan_of(after, 0)).adapter
    assert own_bytes(got) == own_bytes(updates[1].own)


def test_a_alone_crosses_the_wire_without_the_head() -> None:
    state = STRATEGY.init(INITIAL)
    plan = plan_of(state, 0)
    width = sum(layer.in_features for layer in FLEET.model.targets)
    terms_bytes = 4 * width * FLEET.model.num_blocks * STRATEGY.rank
    assert download_bytes(FLEET.model, plan) == HEADER.size + terms_bytes
    assert upload_bytes(FLEET.model, plan.terms) == HEADER.size + terms_bytes
    message = encode_broadcast(STRATEGY.broadcast(state, plan), plan=plan)
    assert len(message) == HEADER.size + terms_bytes
    (both,) = FedLoRA(rank=3).plan(state, FLEET, [0], np.random.default_rng(0))  # type: ignore[arg-type]
    assert FLEET.cost(plan).memory == FLEET.cost(both).memory  # it trains as much
