"""Holds any strategy to the contract of ``algorithms.strategy.Strategy``: ``check_strategy``.

In the manner of scikit-learn's ``check_estimator``: one call, each clause of the contract tried on
small fleets without a simulation, and an error that says which clause fails, what was returned and
what to do. ``fedclock check mine.py:MyStrategy`` calls it from the command line.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from algorithms.contract import wrong_broadcast, wrong_plans, wrong_scale, wrong_state
from algorithms.quadratic import change_of, distance, known_solution, trained_on
from algorithms.static_fleet import StaticDevice, StaticFleet, lasting, spoil, trained_update
from algorithms.strategy import NO_STREAM, LinkRate, ServerState, Strategy
from devices.cost.closed_form import ClosedFormCost
from devices.cost.memory import FORMAT_BITS
from devices.fleet.catalog import load_profiles
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import Adapter, ClientUpdate, DeviceId, Timing, TrainingPlan

PROFILES = ("jetson-agx-orin-maxn", "phone-snapdragon-8-gen-2", "raspberry-pi-4-2gb")
"""The profiles of the devices, in turns; their speeds differ widely."""
NUM_DEVICES = 5
NUM_ROUNDS = 40
LEFT_SHARE = 0.95
"""The largest share of the distance to a known solution that may remain after ``NUM_ROUNDS``. A
strategy that does not learn leaves all of it. FFA-LoRA, whose A is not trained, cannot get below
0.92."""


class ContractError(AssertionError):
    """This error says that a strategy breaks its contract; ``problems`` has each failed clause."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{name}: {problem}" for problem in problems))


def check_fleet(num_blocks: int = 4, num_devices: int = NUM_DEVICES, **work: Any) -> StaticFleet:
    """Return a fleet of catalog devices that all have room for any plan of a small BERT.

    Device k has profile k of ``PROFILES`` in turns, 10 + k examples and a link that is k + 1 times
    as fast as the first one's; ``num_blocks`` is the model's L, and ``work`` what ``StaticFleet``
    takes of the local work.
    """
    catalog = load_profiles()
    profiles = [catalog[PROFILES[k % len(PROFILES)]] for k in range(num_devices)]
    devices = [
        StaticDevice(
            profile,
            profile.memory_bytes,
            LinkRate(1e6 * (k + 1), 2.5e5 * (k + 1)),
            num_examples=10 + k,
            local_steps=1 + k % 2,
        )
        for k, profile in enumerate(profiles)
    ]
    return StaticFleet(
        devices,
        ClosedFormCost(_small_bert(num_blocks), sequence_length=8),
        batch_size=4,
        **work,
        salience=np.linspace(1.0, 2.0, num_blocks),
    )


def _small_bert(num_blocks: int) -> ModelSpec:
    """Return a BERT of width 16 with LoRA on query and value."""
    config = {
        "model_type": "bert",
        "num_hidden_layers": num_blocks,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 16,
    }
    return ModelSpec.from_config("check", config, ["query", "value"], text_head(3))


def check_strategy(strategy: Strategy[Any]) -> None:
    """Try every clause of the contract on ``strategy``.

    Raises ContractError with a line for each clause that does not hold.
    """
    if problems := contract_problems(strategy):
        raise ContractError(type(strategy).__name__, problems)


def contract_problems(strategy: Strategy[Any]) -> list[str]:
    """Return a line for each clause that does not hold, as ``check_strategy`` raises them."""
    if problems := _problems(_check_value, strategy):
        return problems
    for clause in CLAUSES:
        problems += _problems(clause, strategy)
    return problems


def _problems(clause: Callable[[Any], Iterator[str]], strategy: Any) -> list[str]:
    """Return the first problem of a clause; an exception counts as one."""
    name = (clause.__doc__ or clause.__name__).splitlines()[0].rstrip(".")
    try:
        return [f"{name}: {problem}" for problem in clause(strategy)][:1]
    except Exception as error:
        return [f"{name}: must not raise, got {type(error).__name__}: {error}"]


def _check_value(strategy: Any) -> Iterator[str]:
    """A strategy is a frozen dataclass of its options with rank and alpha."""
    parameters = getattr(strategy, "__dataclass_params__", None)
    if isinstance(strategy, type) or parameters is None or not parameters.frozen:
        yield f"make it a value of a class under @dataclass(frozen=True), got {strategy!r:.80}"
        return
    yield from wrong_scale(strategy)
    for name in ("init", "plan", "broadcast", "aggregate"):
        if not callable(getattr(strategy, name, None)):
            yield f"it needs the method {name}; inherit from algorithms.strategy.Strategy"


def _initial(strategy: Any, fleet: StaticFleet) -> Adapter:
    rng = np.random.default_rng(0)
    return fleet.model.initial_adapter(strategy.rank, float(strategy.alpha), rng)


def _start(strategy: Any, fleet: StaticFleet) -> ServerState[Any]:
    state: ServerState[Any] = strategy.init(_initial(strategy, fleet))
    return replace(state, num_devices=len(fleet.device_ids))


def _plans(
    strategy: Any,
    state: ServerState[Any],
    fleet: StaticFleet,
    cohort: Sequence[DeviceId] | None = None,
    seed: int = 1,
) -> Sequence[TrainingPlan]:
    devices = tuple(fleet.device_ids) if cohort is None else tuple(cohort)
    rng = np.random.default_rng(seed) if getattr(strategy, "draws", True) else NO_STREAM
    plans: Sequence[TrainingPlan] = strategy.plan(state, fleet, devices, rng)
    return plans


def _update(
    strategy: Any, state: ServerState[Any], plan: TrainingPlan, fleet: StaticFleet
) -> ClientUpdate:
    """Return an update with noise on the head and on every term that the plan uploads."""
    return trained_update(
        plan,
        strategy.broadcast(state, plan),
        np.random.default_rng((2, plan.device_id)),
        num_examples=fleet.num_examples(plan.device_id),
        timing=Timing(1.0, 2.0, 1.0),
    )


def _round(
    strategy: Any, fleet: StaticFleet
) -> tuple[ServerState[Any], Sequence[TrainingPlan], list[ClientUpdate]]:
    state = _start(strategy, fleet)
    plans = _plans(strategy, state, fleet)
    return state, plans, [_update(strategy, state, plan, fleet) for plan in plans]


def _check_init(strategy: Any) -> Iterator[str]:
    """The method init returns a ServerState of version 0 with the adapter that it was given."""
    adapter = _initial(strategy, check_fleet())
    yield from _said(wrong_state(strategy.init(adapter), adapter, 0))


def _check_plans(strategy: Any) -> Iterator[str]:
    """The method plan returns at most one TrainingPlan for each device, of the cohort alone."""
    for fleet in _fleets():
        state = _start(strategy, fleet)
        for cohort in (fleet.device_ids, fleet.device_ids[1:3], fleet.device_ids[:1]):
            plans = _plans(strategy, state, fleet, cohort)
            yield from _said(wrong_plans(plans, state.adapter, cohort))


def _said(wrong: str | None) -> Iterator[str]:
    """Yield what a method must return, where ``contract.py`` says that it did not."""
    if wrong:
        yield f"it must return {wrong}"


def _check_room(strategy: Any) -> Iterator[str]:
    """A device with room for everything gets a plan that fits it and uploads something."""
    fleet = check_fleet()
    plans = _plans(strategy, _start(strategy, fleet), fleet)
    if not plans:
        yield "at least one of five devices that can hold any plan must get one, got none"
    for plan in plans:
        needed, room = fleet.cost(plan).memory.total, fleet.memory_budget_bytes(plan.device_id)
        if needed > room:
            yield f"the plan of device {plan.device_id} needs {needed} bytes of its {room}"
        if not lasting(plan.terms).any():
            yield f"the plan of device {plan.device_id} uploads no term; let the device sit out"


def _check_same_inputs(strategy: Any) -> Iterator[str]:
    """Equal inputs get equal plans and equal aggregates, also from a copy of the strategy."""
    fleet = check_fleet()
    state, plans, updates = _round(strategy, fleet)
    after = strategy.aggregate(state, updates)
    for one in (strategy, copy.deepcopy(strategy)):
        if _workloads(_plans(one, state, fleet)) != _workloads(plans):
            yield "plan differed at a second call; draw from the rng that it is given, nothing else"
        if one.aggregate(state, updates).adapter.digest != after.adapter.digest:
            yield "aggregate differed at a second call; keep what must be kept in state.memory"


def _check_purity(strategy: Any) -> Iterator[str]:
    """No method changes its arguments, the strategy or the global random generators."""
    fleet = check_fleet()
    before_value = repr(strategy)
    global_draws = _global_draws()
    state, plans, updates = _round(strategy, fleet)
    before = _fingerprint((state, plans, updates))
    _plans(strategy, state, fleet)
    strategy.aggregate(state, updates)
    if before != _fingerprint((state, plans, updates)):
        yield "build values anew instead of writing into the state, the plans or the updates"
    if repr(strategy) != before_value:
        yield f"the strategy itself changed: {before_value:.80} became {strategy!r:.80}"
    if global_draws != _global_draws():
        yield "draw from the rng that plan is given, not from numpy's or Python's global generator"


def _check_broadcast(strategy: Any) -> Iterator[str]:
    """The method broadcast returns a Broadcast of the state's version and adapter shapes."""
    fleet = check_fleet()
    state, plans, updates = _round(strategy, fleet)
    for now in (state, strategy.aggregate(state, updates)):
        for plan in plans:
            yield from _said(wrong_broadcast(strategy.broadcast(now, plan), now))


def _check_aggregate(strategy: Any) -> Iterator[str]:
    """The method aggregate returns the next version, with equal names and shapes, in float32."""
    for fleet in _fleets():
        state, _, updates = _round(strategy, fleet)
        for given in (updates, updates[:1], updates[-1:], updates[::2]):
            after = strategy.aggregate(state, given)
            if wrong := wrong_state(after, state.adapter, state.version + 1):
                yield from _said(wrong)
                return
            arrays = [*after.adapter.head.values()]
            arrays += [values for pair in after.adapter.factors.values() for values in pair]
            if not all(np.isfinite(values).all() for values in arrays):
                yield "every number must be finite"


def _check_unsent(strategy: Any) -> Iterator[str]:
    """Values of an update in terms that were not sent have no effect on the result."""
    fleet = check_fleet()
    state, _, updates = _round(strategy, fleet)
    spoiled = [replace(update, adapter=spoil(update.adapter, update.plan)) for update in updates]
    clean, dirty = strategy.aggregate(state, updates), strategy.aggregate(state, spoiled)
    if clean.adapter.digest != dirty.adapter.digest:
        yield "read only plan.terms.uploaded of an update, as holder_weights and mean_adapter do"


def _check_counts(strategy: Any) -> Iterator[str]:
    """Every update that is merged moves the global model, or its device's own without one."""
    fleet = check_fleet()
    state, _, updates = _round(strategy, fleet)
    after = strategy.aggregate(state, updates)
    for k, update in enumerate(updates):
        start, device_id = update.broadcast.adapter, update.plan.device_id
        unmoved = replace(update, adapter=start, own=update.own and start)
        without = strategy.aggregate(state, [*updates[:k], unmoved, *updates[k + 1 :]])
        one, other = (_model(strategy, state, device_id) for state in (without, after))
        if all(np.array_equal(change_of(one, key), change_of(other, key)) for key in other.factors):
            yield f"the update of device {update.plan.device_id} of {len(updates)} changes nothing"


def _check_smallest(strategy: Any) -> Iterator[str]:
    """A model of one block, and an adapter of rank 1, are no special case."""
    try:
        smallest = replace(strategy, rank=1)
    except ValueError:  # the strategy does not allow rank 1
        smallest = strategy
    fleet = check_fleet(num_blocks=1, num_devices=2)
    state, _, updates = _round(smallest, fleet)
    for _ in range(3):
        if updates:
            state = smallest.aggregate(state, updates)
        plans = _plans(smallest, state, fleet)
        updates = [_update(smallest, state, plan, fleet) for plan in plans]
    yield from ()


def _check_local_work(strategy: Any) -> Iterator[str]:
    """Every plan has the local steps and the form of training that the fleet asks for."""
    fleet = check_fleet(
        proximal_mu=0.3, micro_batch=2, weight_format="int8", upload_bits=8, head_bits=16
    )
    for plan in _plans(strategy, _start(strategy, fleet), fleet):
        given = plan.proximal_mu, plan.local_steps, plan.batch_size, plan.micro_batch
        steps = fleet.local_steps(plan.device_id)
        wanted = fleet.proximal_mu, steps, fleet.batch_size, fleet.micro_batch
        if given != wanted:
            yield f"make plans with make_plan(fleet, ...), got {given} instead of {wanted}"
        most = max(FORMAT_BITS[name] for name in plan.weight_formats)
        if plan.terms.head_bits != fleet.head_bits:
            yield (
                f"make plans with make_plan(fleet, ...), got a head uploaded at "
                f"{plan.terms.head_bits} bits instead of {fleet.head_bits}"
            )
        if most > 8 or plan.terms.upload_bits.max() > 8:
            yield (
                f"make plans with make_plan(fleet, ...), got weights of {most} bits and uploads of "
                f"{plan.terms.upload_bits.max()} where the fleet allows 8"
            )


def _check_learning(strategy: Any) -> Iterator[str]:
    """Forty rounds of exact gradients on a quadratic bring the model nearer to its solution."""
    fleet = check_fleet(num_blocks=2, num_devices=3)
    goals = known_solution(fleet.model)
    state = _start(strategy, fleet)
    models = [partial(_model, strategy, device_id=device_id) for device_id in fleet.device_ids]
    first = max(distance(model(state), goals) for model in models)
    for number in range(NUM_ROUNDS):
        plans = _plans(strategy, state, fleet, seed=number)
        updates = [trained_on(strategy, state, plan, fleet, goals) for plan in plans]
        if updates:
            state = strategy.aggregate(state, updates)
    left = max(distance(model(state), goals) for model in models) / first
    if not left <= LEFT_SHARE:
        yield f"at most {LEFT_SHARE:.0%} of the distance may be left, got {left:.0%}"


CLAUSES: tuple[Callable[[Any], Iterator[str]], ...] = (
    _check_init,
    _check_plans,
    _check_room,
    _check_same_inputs,
    _check_purity,
    _check_broadcast,
    _check_aggregate,
    _check_unsent,
    _check_counts,
    _check_smallest,
    _check_local_work,
    _check_learning,
)
"""Every clause of the contract, each a check whose docstring states it."""


def _fingerprint(value: object) -> str:
    """Return a hash of a value down to the numbers of its arrays, without what it has cached."""
    if isinstance(value, np.ndarray):
        parts = [str(value.dtype), repr(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [_fingerprint(getattr(value, one.name)) for one in fields(value)]
    elif isinstance(value, Mapping):
        parts = [repr(key) + _fingerprint(one) for key, one in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_fingerprint(one) for one in value]
    else:
        return repr(value)
    return f"{type(value).__name__}({', '.join(parts)})"


def _global_draws() -> tuple[str, object]:
    """Return the state of the two global random generators, which nobody may move."""
    return repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def _fleets() -> tuple[StaticFleet, StaticFleet]:
    return check_fleet(), check_fleet(num_blocks=2, num_devices=3)


def _workloads(plans: Sequence[TrainingPlan]) -> list[tuple[DeviceId, bytes]]:
    return [(plan.device_id, plan.workload) for plan in plans]


def _model(strategy: Any, state: ServerState[Any], device_id: DeviceId) -> Adapter:
    """Return the global model, or the device's own where the strategy has no global one."""
    if getattr(strategy, "has_global_model", True):
        return state.adapter
    own: Adapter = strategy.own_model(state, device_id)
    return own
