"""With differential privacy, changes are clipped and counted alike, and noise is added to their
sum."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from algorithms.merging.privacy import Privacy, WithPrivacy
from algorithms.merging.robust import update_norm
from algorithms.registry import STRATEGIES
from algorithms.strategy import ServerState
from devices.vocabulary.plan import Adapter, ClientUpdate
from simulator.config.experiment import ConfigError, load_experiment
from simulator.config.schema import RunConfig
from simulator.log.progress import PlainReporter
from simulator.runs.preparation import prepare
from simulator.runs.run import run
from simulator.workers.trainers import Trainers
from tests.algorithms.haflq_fleets import device, fleet_of
from tests.algorithms.static_fleet import random_adapter, trained_update
from traces.arrays import FloatArray

FLEET = fleet_of([device()] * 4)
PRIVATE = ("fedlora", "ffa-lora", "rolora")
COHORT = 4


def private(kind: str, *, noise_multiplier: float = 0.5, noise_seed: int = 7) -> WithPrivacy:
    strategy: Any = STRATEGIES[kind]
    privacy = Privacy(clip_norm=1.5, noise_multiplier=noise_multiplier)
    return WithPrivacy(strategy(rank=2), privacy, COHORT, noise_seed)


def a_round(strategy: WithPrivacy, num: int) -> tuple[ServerState[Any], list[ClientUpdate]]:
    rng = np.random.default_rng(3)
    state = strategy.init(random_adapter(FLEET.model, 2, rng))
    plans = strategy.plan(state, FLEET, range(num), rng)
    return state, [
        trained_update(plan, strategy.broadcast(state, plan), rng, num_examples=1 + k)
        for k, plan in enumerate(plans)
    ]


def vector(adapter: Adapter) -> FloatArray:
    arrays = [*(part for pair in adapter.factors.values() for part in pair), *adapter.head.values()]
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays])


def clipped_change(update: ClientUpdate, norm: float) -> FloatArray:
    change = vector(update.adapter) - vector(update.broadcast.adapter)
    return change * min(1.0, norm / float(np.linalg.norm(change)))


@pytest.mark.parametrize("kind", PRIVATE)
@pytest.mark.parametrize("num", [2, 4])
def test_the_model_moves_by_the_sum_of_clipped_changes_over_the_cohort(kind: str, num: int) -> None:
    """Whoever is missing counts as zero, and examples do not count."""
    strategy = private(kind, noise_multiplier=1e-9)
    state, updates = a_round(strategy, num)
    assert all(update_norm(update) > 1.5 for update in updates)
    moved = vector(strategy.aggregate(state, updates).adapter) - vector(state.adapter)
    wanted = sum(clipped_change(update, 1.5) for update in updates) / COHORT
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", PRIVATE)
def test_replacing_one_update_moves_the_sum_by_at_most_two_norms(kind: str) -> None:
    strategy = private(kind, noise_multiplier=1e-9)
    state, updates = a_round(strategy, 4)
    far = vector(state.adapter)
    one = strategy.aggregate(state, updates)
    factors = {
        key: type(pair)(*(100 * part for part in pair))
        for key, pair in updates[0].adapter.factors.items()
    }
    other = replace(updates[0], adapter=replace(updates[0].adapter, factors=factors))
    two = strategy.aggregate(state, [other, *updates[1:]])
    apart = COHORT * np.linalg.norm(vector(one.adapter) - vector(two.adapter))
    assert 0 < apart <= 2 * 1.5 * (1 + 1e-5)
    assert len(far)


@pytest.mark.parametrize("kind", PRIVATE)
def test_noise_has_its_deviation_on_what_was_sent_and_is_that_of_its_seed(kind: str) -> None:
    quiet, loud = private(kind, noise_multiplier=1e-9), private(kind, noise_multiplier=8.0)
    state, updates = a_round(loud, 4)
    noise = vector(loud.aggregate(state, updates).adapter)
    assert np.array_equal(vector(loud.aggregate(state, updates).adapter), noise)
    noise = noise - vector(quiet.aggregate(state, updates).adapter)
    moved = vector(updates[0].adapter) != vector(state.adapter)
    assert not noise[~moved].any()
    # Of n numbers the deviation has a standard error of 1 / (2 n)^0.5 of itself.
    error = 1 / math.sqrt(2 * moved.sum())
    assert noise[moved].std() == pytest.approx(8.0 * 1.5 / COHORT, rel=4 * error)
    again = replace(loud, noise_seed=8).aggregate(state, updates)
    assert not np.array_equal(vector(again.adapter), vector(loud.aggregate(state, updates).adapter))
    later = loud.aggregate(replace(state, version=1), updates)
    assert not np.array_equal(vector(later.adapter), vector(loud.aggregate(state, updates).adapter))


def test_epsilon_is_that_of_renyi_divergence_where_all_devices_take_part() -> None:
    """The Gaussian's divergence is a T / (2 s^2) at order a, and s is z / 2 by replacement."""
    pytest.importorskip("dp_accounting")
    privacy, rounds = Privacy(clip_norm=1.0, noise_multiplier=4.0, delta=1e-6), 20
    found = privacy.epsilon(num_devices=10, cohort=10, rounds=rounds)
    orders = np.linspace(1.01, 64, 100_000)
    divergence = orders * rounds / (2 * 2.0**2)
    bound = divergence + np.log1p(-1 / orders) - np.log(1e-6 * orders) / (orders - 1)
    assert found == pytest.approx(bound.min(), rel=1e-2)
    assert privacy.epsilon(num_devices=10, cohort=10, rounds=0) == 0.0


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_with_the_fleet() -> None:
    pytest.importorskip("dp_accounting")
    privacy = Privacy(clip_norm=1.0, noise_multiplier=4.0)

    def epsilon(noise: float = 4.0, devices: int = 1000, rounds: int = 50) -> float:
        chosen = replace(privacy, noise_multiplier=noise)
        return chosen.epsilon(num_devices=devices, cohort=10, rounds=rounds)

    assert epsilon(rounds=200) > epsilon() > epsilon(noise=8.0)
    assert epsilon(devices=20) > epsilon(devices=200) > epsilon()


def written(folder: Path, **changed: Any) -> RunConfig:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, **changed}), "utf-8")
    (config,) = load_experiment(file)
    return config


CONFIG: dict[str, Any] = {
    "name": "private",
    "task": {"model": "tiny", "max_length": 16},
    "training": "none",
    "local": {"batch_size": 4, "steps": 1},
    "fleet": {"devices": [{"profile": "raspberry-pi-4-2gb", "count": 6, "link": "wifi"}]},
    "pacing": {"kind": "synchronous", "cohort": 3},
    "privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0},
    "stop": {"rounds": 3},
    "strategy": {"kind": "ffa-lora", "rank": 2},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strategy": {"kind": "fedquad", "rank": 2}}, "remembers nothing else, got fedquad"),
        ({"strategy": {"kind": "fedra", "rank": 2, "blocks": [1]}}, "send the same terms"),
        ({"selection": {"kind": "fair"}}, "selection uniform, got fair"),
        (
            {"pacing": {"kind": "fedbuff", "concurrency": 3, "size": 2}},
            "pacing synchronous, got fedbuff",
        ),
        ({"faults": {"crash": {"per_hour": 1.0}}}, "there at all times"),
        ({"aggregation": {"trim_share": 0.2}}, "trim_share beside"),
    ],
)
def test_what_the_accountant_does_not_cover_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("dp_accounting")
    with pytest.raises(ConfigError, match=said) as error:
        prepare(written(tmp_path, **changed), tmp_path / "run", "x.yaml")
    assert all(line.startswith("privacy: a run must have") for line in error.value.problems)


def test_without_the_library_a_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedclock\[privacy\]'"):
        prepare(written(tmp_path), tmp_path / "run", "x.yaml")


def test_the_manifest_has_the_epsilon_of_all_rounds(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    config = written(tmp_path)
    report = PlainReporter(Console(quiet=True))
    with Trainers(1) as trainers:
        run(prepare(config, tmp_path / "run", "x.yaml"), trainers=trainers, report=report)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert config.privacy
    wanted = config.privacy.epsilon(num_devices=6, cohort=3, rounds=3)
    assert (manifest["epsilon"], manifest["delta"]) == (wanted, 1e-5)
    assert 0 < wanted < math.inf
