"""Strategies of Flower itself run under our contract: what they merge is what their functions
merge."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

if importlib.util.find_spec("flwr") is None:
    pytest.skip("Flower is not installed (the extra flower)", allow_module_level=True)

from flwr.common import FitIns, ndarrays_to_parameters
from flwr.server.strategy import FedAdam, FedAvg, FedProx, Krum
from flwr.server.strategy import Strategy as Flower
from flwr.server.strategy.aggregate import aggregate_krum

from algorithms.checks import check_fleet, contract_problems
from algorithms.flower.strategy import FlowerStrategy, _arrays
from algorithms.merging.server_optimizers import FedAdam as OurFedAdam
from algorithms.merging.server_optimizers import Moments
from algorithms.static_fleet import trained_update
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategy import ServerState, StrategyError
from devices.vocabulary.plan import Adapter, ClientUpdate
from simulator.config.experiment import load_experiment
from simulator.config.own_strategy import StrategyFileError
from tests.command_line import fedclock

ULP = 2.0**-23


def under(make: Callable[[Any], Flower], **options: Any) -> FlowerStrategy:
    """Return a strategy of Flower under FedClock."""

    @dataclass(frozen=True)
    class Mine(FlowerStrategy):
        def flower(self, initial: Any) -> Flower:
            return make(initial)

    return Mine(rank=4, **options)


def fed_adam(initial: Any) -> Flower:
    return FedAdam(initial_parameters=initial, eta=0.05, tau=1e-3)


def start(strategy: Any) -> ServerState[Any]:
    fleet = check_fleet()
    rng = np.random.default_rng(0)
    adapter = fleet.model.initial_adapter(strategy.rank, float(strategy.alpha), rng)
    started: ServerState[Any] = strategy.init(adapter)
    return started


def updates_of(strategy: Any, state: ServerState[Any], seed: int = 2) -> list[ClientUpdate]:
    fleet = check_fleet()
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(1))
    return [
        trained_update(
            plan,
            strategy.broadcast(state, plan),
            np.random.default_rng((seed, plan.device_id)),
            num_examples=fleet.num_examples(plan.device_id),
        )
        for plan in plans
    ]


def flat(adapter: Adapter) -> np.ndarray[Any, Any]:
    return np.concatenate([array.ravel() for array in _arrays(adapter)]).astype(np.float64)


@pytest.mark.parametrize("depth", ["all", 2])
def test_fedavg_of_flower_is_the_mean_of_fedlora_to_the_rounding_of_fp32(depth: Any) -> None:
    theirs, ours = under(lambda _: FedAvg(), depth=depth), FedLoRA(rank=4, depth=depth)
    state = start(ours)
    updates = updates_of(ours, state)
    assert len(updates) == 5
    merged = theirs.aggregate(start(theirs), updates)
    mean = ours.aggregate(state, updates)
    # Flower sums K products in fp32: K + 1 roundings of the largest value.
    largest = max(np.abs(flat(update.adapter)).max() for update in updates)
    np.testing.assert_allclose(
        flat(merged.adapter), flat(mean.adapter), rtol=0, atol=6 * ULP * largest
    )
    assert merged.version == 1


def test_a_strategy_without_a_function_of_metrics_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    strategy = under(lambda initial: FedAvg())
    state = start(strategy)
    strategy.aggregate(state, updates_of(strategy, state))
    assert "fit_metrics" not in caplog.text


def test_fedadam_of_flower_steps_as_our_server_optimizer_but_for_its_start_and_its_rate() -> None:
    """Flower's v starts at 0, ours at tau^2; and Flower corrects the bias of its moments."""
    strategy = under(fed_adam)
    state = start(strategy)
    moments, now = Moments(np.zeros(1), np.zeros(1)), flat(state.adapter)
    for round_number in (1, 2, 3):
        updates = updates_of(strategy, state, seed=round_number)
        counts = np.array([update.num_examples for update in updates], dtype=np.float64)
        mean = sum(
            share * flat(update.adapter)
            for share, update in zip(counts / counts.sum(), updates, strict=True)
        )
        rate = 0.05 * math.sqrt(1 - 0.99 ** (round_number + 1)) / (1 - 0.9 ** (round_number + 1))
        step, moments = OurFedAdam(learning_rate=rate).step(mean - now, moments)
        now = now + step
        state = strategy.aggregate(state, updates)
        np.testing.assert_allclose(flat(state.adapter), now, rtol=2e-5, atol=2e-6)


def test_krum_of_flower_takes_the_update_that_its_own_function_takes() -> None:
    strategy = under(lambda _: Krum(num_malicious_clients=1))
    state = start(strategy)
    updates = updates_of(strategy, state)
    loud = {name: values + 50 for name, values in updates[1].adapter.head.items()}
    updates[1] = replace(updates[1], adapter=replace(updates[1].adapter, head=loud))
    merged = strategy.aggregate(state, updates)
    lists = [(list(_arrays(update.adapter)), update.num_examples) for update in updates]
    expected = aggregate_krum(lists, 1, 0)
    for given, wanted in zip(_arrays(merged.adapter), expected, strict=True):
        assert np.array_equal(given, wanted)
    taken = [
        n
        for n, one in enumerate(updates)
        if np.array_equal(flat(one.adapter), flat(merged.adapter))
    ]
    assert len(taken) == 1
    assert taken != [1]


def test_fedprox_s_term_reaches_the_devices_and_other_instructions_are_refused() -> None:
    strategy = under(lambda _: FedProx(proximal_mu=0.25))
    state, fleet = start(strategy), check_fleet()
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(0))
    assert {plan.proximal_mu for plan in plans} == {0.25}
    told = under(
        lambda _: FedAvg(on_fit_config_fn=lambda number: {"lr": 0.1, "server_round": number})
    )
    with pytest.raises(StrategyError, match=r"nothing but proximal_mu, .*, got lr; name in Mine"):
        told.plan(start(told), fleet, fleet.device_ids, np.random.default_rng(0))


class Choosy(FedAvg):
    """This strategy trains the first two clients alone, and merges what it remembered of them."""

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        self.chosen = list(client_manager.all().values())[:2]
        return [(client, FitIns(parameters, {})) for client in self.chosen]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        assert [client.cid for client in self.chosen] == [client.cid for client, _ in results[:2]]
        return super().aggregate_fit(server_round, results, failures)


def test_devices_that_configure_fit_leaves_out_sit_out() -> None:
    strategy = under(lambda _: Choosy())
    state, fleet = start(strategy), check_fleet()
    plans = strategy.plan(state, fleet, fleet.device_ids, np.random.default_rng(0))
    assert [plan.device_id for plan in plans] == [0, 1]
    strategy.aggregate(state, updates_of(strategy, state))


MADE: dict[str, Callable[[Any], Flower]] = {
    "FedAvg": lambda _: FedAvg(),
    "FedAdam": fed_adam,
    "Krum": lambda _: Krum(num_malicious_clients=1),
}


@pytest.mark.parametrize("name", MADE)
def test_strategies_of_flower_keep_the_contract(name: str) -> None:
    assert contract_problems(under(MADE[name])) == []


class Wrong(FedAvg):
    """This strategy merges into whatever it was told to, in place of parameters."""

    def __init__(self, result: Callable[[], Any]) -> None:
        super().__init__()
        self.result = result

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        return self.result(), {}


def raising() -> Any:
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda: ndarrays_to_parameters([np.zeros(3)]),
         "shapes of the global model, 18 of them, got 1, of which number 0"),
        (raising, r"Wrong\.aggregate_fit must not raise, got RuntimeError: out of order"),
    ],
)  # fmt: skip
def test_what_flower_must_not_do_is_said(result: Callable[[], Any], words: str) -> None:
    strategy = under(lambda _: Wrong(result))
    state = start(strategy)
    with pytest.raises(StrategyError, match=words):
        strategy.aggregate(state, updates_of(strategy, state))


def test_a_round_without_a_result_keeps_the_global_model() -> None:
    strategy = under(lambda _: Wrong(lambda: None))
    state = start(strategy)
    after = strategy.aggregate(state, updates_of(strategy, state))
    assert (after.version, after.adapter) == (1, state.adapter)


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "flower.md").read_text("utf-8")


def block(language: str) -> str:
    return PAGE.partition(f"```{language}\n")[2].partition("```")[0]


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(block("python"), "utf-8")
    (tmp_path / "mine.yaml").write_text(block("yaml"), "utf-8")
    for line in block("sh").splitlines():
        done = fedclock(*line.partition("#")[0].split()[1:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    manifests = list(tmp_path.rglob("manifest.json"))
    assert len(manifests) == 3
    assert all(
        (file.parent / "mine.py").is_file() for file in manifests if "fedlora" not in str(file)
    )


def test_readers_of_its_runs_import_neither_the_file_nor_flower(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(block("python"), "utf-8")
    (tmp_path / "mine.yaml").write_text(block("yaml"), "utf-8")
    done = fedclock("run", "mine.yaml", "--only", "krum", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "flwr.py").write_text("raise SystemExit('it was imported')", "utf-8")
    (tmp_path / "mine.py").unlink()
    read = subprocess.run(  # a process of its own, which has imported nothing yet
        [sys.executable, "-m", "fedclock", "summary", "runs/flower"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "elsewhere"), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert (read.returncode, read.stderr) == (0, "")
    assert "krum" in read.stdout.lower()


def test_a_fault_of_flower_in_a_run_is_one_sentence(tmp_path: Path) -> None:
    text = block("python") + (
        "\n\n@dataclass(frozen=True)\nclass Late(FlowerStrategy):\n"
        "    def flower(self, initial):\n"
        "        return FedAvg(on_fit_config_fn=lambda n: {'lr': n})\n"
    )
    (tmp_path / "mine.py").write_text(
        text.replace("import FedAdam", "import FedAvg, FedAdam"), "utf-8"
    )
    config = yaml.safe_load(block("yaml"))
    config["strategies"] = {"late": {"kind": "mine.py:Late", "rank": 4}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config), "utf-8")
    done = fedclock("run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "configure_fit must tell devices nothing but proximal_mu" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_fields_of_the_example_are_held_to_their_ranges(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(block("python"), "utf-8")
    config = yaml.safe_load(block("yaml"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config), "utf-8")
    runs: Sequence[Any] = load_experiment(tmp_path / "mine.yaml")
    assert {run.label for run in runs} == set(config["strategies"])
    with pytest.raises((StrategyFileError, ValueError), match="eta must be above 0"):
        load_experiment(tmp_path / "mine.yaml", ["strategies.adam.eta=-1"])
