"""Updates that do harm: what is sent, what the server lets in, and what becomes of the model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.merging.robust import Robustness
from algorithms.pacing import FedBuff
from algorithms.registry import STRATEGIES
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.haflq import HAFLQ
from devices.tasks.classification import LOSS
from devices.vocabulary.plan import Factors
from devices.vocabulary.trainer import TrainingError, TrainingJob, TrainingResult
from simulator.config.experiment import ConfigError, load_experiment
from simulator.engine.server import simulate
from simulator.runs.preparation import notes, prepare
from simulator.workers.kept_results import Checkpoint, CheckpointedTrainer
from simulator.world.build import build_world
from tests.simulator.small import DriftTrainer, Memory, make_device, make_federation, one_context
from tests.simulator.test_command import REAL, fedclock, write
from tests.simulator.test_conditions import faults

ALL = [{"device": device, "at_s": 0.0} for device in (1, 3)]


def run(num_devices: int = 4, *, byzantine: dict[str, Any] | None = None, **given: Any) -> Memory:
    log = Memory()
    fleet = [make_device(k) for k in range(num_devices)]
    given.setdefault("trainer", DriftTrainer())
    met = faults(num_devices, byzantine=byzantine or {})
    simulate(make_federation(fleet, faults=met, **given), log)
    return log


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", r"an update must be finite, got NaN or inf in block \d query"),
        ("wrong_shape", r"the payload of this plan's update must have \d+ bytes, got \d+"),
    ],
)
@pytest.mark.parametrize("strategy", [FedLoRA(rank=2), HAFLQ(rank=2)])
def test_what_is_no_update_is_refused(kind: str, reason: str, strategy: Any) -> None:
    log = run(byzantine={"kind": kind, "schedule": ALL}, rounds=2, strategy=strategy)
    rejected = log.named("rejected")
    assert [event.device for event in rejected] == [1, 3, 1, 3]
    assert all(re.match(reason, event.details["reason"]) for event in rejected)
    assert [record.num_rejected for record in log.rounds] == [0, 2, 2]
    assert [event.details["devices"] for event in log.named("aggregated")] == [[0, 2]] * 2
    assert log.rounds[-1].score > log.rounds[0].score  # the honest devices' updates still count


def test_norms_above_the_bound_are_refused_with_both_numbers() -> None:
    attack = {"kind": "huge_norm", "schedule": ALL, "strength": 1e4}
    log = run(byzantine=attack, robustness=Robustness(max_norm=100.0))
    reasons = [event.details["reason"] for event in log.named("rejected")]
    assert len(reasons) == 4
    assert all("norm of an update must be at most 100 (aggregation.max_norm)" in r for r in reasons)
    assert not run(robustness=Robustness(max_norm=100.0)).named("rejected")


def test_an_attacker_is_honest_before_its_instant() -> None:
    free = run(rounds=1)
    second_round_s = free.rounds[-1].closed_s
    schedule = [{"device": 1, "at_s": second_round_s}]
    log = run(byzantine={"kind": "nan", "schedule": schedule}, rounds=3)
    assert [event.round for event in log.named("rejected")] == [2, 3]


def test_attackers_are_a_share_of_the_fleet_and_the_same_for_every_strategy() -> None:
    def attackers(seed: int) -> np.ndarray[Any, Any]:
        met = faults(5000, seed, byzantine={"share": 0.2})
        return np.flatnonzero(np.isfinite(met.byzantine_s))

    # Binomial(5000, 0.2) has a standard deviation of 28.3; six of them are 170.
    assert abs(len(attackers(1)) - 1000) < 170
    assert attackers(1).tolist() == attackers(1).tolist() != attackers(2).tolist()


def test_attacks_move_no_second_and_no_byte() -> None:
    honest = run(rounds=3)
    for kind in ("nan", "wrong_shape", "huge_norm", "sign_flip", "noise"):
        log = run(byzantine={"kind": kind, "schedule": ALL}, rounds=3)
        for mine, theirs in zip(log.clients, honest.clients, strict=True):
            assert (mine.finished_s, mine.upload_bytes) == (theirs.finished_s, theirs.upload_bytes)


def test_sign_flip_and_huge_norm_are_the_update_times_their_strength() -> None:
    class Still(DriftTrainer):
        """Moves every trained number by the same, so that a mean can be worked out by hand."""

        def _result(self, job: TrainingJob) -> TrainingResult:
            old = job.broadcast.adapter
            moved = {key: Factors(f.a, f.b + np.float32(0.25)) for key, f in old.factors.items()}
            return TrainingResult(replace(old, factors=moved), 0.5)

    for kind, expected in (("sign_flip", (0.25 - 0.75) / 2), ("huge_norm", (0.25 + 0.75) / 2)):
        server_log = Memory()
        fleet = [make_device(0), make_device(1)]
        attack = {"kind": kind, "strength": 3.0, "schedule": ALL[:1]}
        federation = make_federation(
            fleet, trainer=Still(), rounds=1, faults=faults(2, byzantine=attack)
        )
        server = simulate(federation, server_log)
        for factors in server.state.adapter.factors.values():
            np.testing.assert_allclose(factors.b, expected, rtol=1e-6)


def test_trimmed_mean_keeps_learning_where_a_fifth_flips_signs_and_the_plain_mean_does_not() -> (
    None
):
    """Honest updates go half-way to the goal. With a fifth at -10 times that, the plain mean goes
    0.8 * 0.5 - 0.2 * 5 = -0.6 of the way, and away from the goal by 1.6 a round."""
    attack = {"kind": "sign_flip", "schedule": ALL}
    plain = run(10, byzantine=attack, rounds=5)
    assert plain.rounds[-1].metrics[LOSS] > 5 * plain.rounds[0].metrics[LOSS]
    trimmed = run(10, byzantine=attack, rounds=5, robustness=Robustness(trim_share=0.2))
    assert trimmed.rounds[-1].metrics[LOSS] < 0.1 * trimmed.rounds[0].metrics[LOSS]
    honest = run(10, rounds=5)
    assert trimmed.rounds[-1].metrics[LOSS] == pytest.approx(
        honest.rounds[-1].metrics[LOSS], abs=0.02
    )


@pytest.mark.parametrize("kind", [k for k in STRATEGIES if k != "flora"])
def test_every_strategy_goes_on_with_clipped_and_trimmed_updates(kind: str) -> None:
    attack = {"kind": "noise", "schedule": ALL, "strength": 5.0}
    robustness = Robustness(max_norm=1e4, clip_norm=5.0, trim_share=0.3)
    strategy = STRATEGIES[kind](rank=2)
    log = run(8, byzantine=attack, rounds=3, robustness=robustness, strategy=strategy)
    assert np.isfinite(log.rounds[-1].metrics[LOSS]) == strategy.has_global_model
    assert log.rounds[-1].num_aggregated > 0


def test_a_buffer_goes_on_without_what_was_refused() -> None:
    pacing = FedBuff(concurrency=4, size=2)
    log = run(byzantine={"kind": "nan", "schedule": ALL}, rounds=6, pacing=pacing)
    assert sum(record.num_rejected for record in log.rounds) > 0
    assert all(event.device in (1, 3) for event in log.named("rejected"))


class Diverging(DriftTrainer):
    """This trainer lets the loss of device 2 go to infinity."""

    def _result(self, job: TrainingJob) -> TrainingResult:
        result = super()._result(job)
        if job.plan.device_id != 2:
            return result
        return result._replace(train_loss=float("inf"), diverged="the loss must stay finite")


def test_a_diverged_update_is_dropped_or_stops_the_run() -> None:
    log = run(trainer=Diverging(), when_diverged="drop")
    assert [(e.device, e.details["reason"]) for e in log.named("rejected")] == [
        (2, "the loss must stay finite")
    ] * 2
    assert [record.num_rejected for record in log.rounds] == [0, 1, 1]
    assert [r.outcome for r in log.clients if r.device_id == 2] == ["rejected"] * 2
    with pytest.raises(TrainingError, match="the loss must stay finite"):
        run(trainer=Diverging())


def test_a_resumed_run_knows_which_updates_had_diverged(tmp_path: Path) -> None:
    def resumed() -> Memory:
        kept = CheckpointedTrainer(Diverging(), Checkpoint(tmp_path, pytest.fail), one_context())
        return run(trainer=kept, when_diverged="drop")

    first, again = resumed(), resumed()
    assert again.named("rejected") == first.named("rejected") != []


def test_real_training_that_diverges_is_dropped_and_counted(tmp_path: Path) -> None:
    config = {k: v for k, v in REAL.items() if k != "strategies"}
    config["strategy"] = {"kind": "fedlora", "rank": 2}
    config["stop"] = {"rounds": 1}
    config["training"] = {"learning_rate": 1e30, "dtype": "fp32", "when_diverged": "drop"}
    file = write(tmp_path, config)
    done = fedclock("run", file, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.rglob("events.jsonl")
    assert log.read_text("utf-8").count('"event": "rejected"') == 3
    config["training"]["when_diverged"] = "stop"
    stopped = fedclock("run", write(tmp_path, config), "--workers", "1", cwd=tmp_path)
    assert stopped.returncode == 2
    assert "error: the loss must stay finite and at most 10000, got" in stopped.stderr
    assert "lower training.learning_rate" in stopped.stderr


def test_trimming_is_refused_where_no_two_devices_share_a_coordinate(tmp_path: Path) -> None:
    config = {k: v for k, v in REAL.items() if k != "strategies"} | {"training": "none"}
    config |= {"strategy": {"kind": "flora", "rank": 2}, "aggregation": {"trim_share": 0.2}}
    file = write(tmp_path, config)
    (loaded,) = load_experiment(file)
    with pytest.raises(ConfigError, match=r"aggregation\.trim_share must be 0 under flora"):
        notes(loaded, build_world(loaded, "x"), "x")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"aggregation": {"trim_share": 0.5}}, r"aggregation\.trim_share must be in \[0, 0\.5\)"),
        ({"aggregation": {"max_norm": 0}}, r"aggregation\.max_norm must be above 0 and finite"),
        ({"faults": {"byzantine": {"kind": "evil"}}}, r"faults\.byzantine\.kind must be 'nan', "),
        (
            {"faults": {"byzantine": {"schedule": [{"device": 9, "at_s": 0}]}}},
            r"faults\.byzantine\.schedule\.0\.device must be in \[0, 4\]",
        ),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {k: v for k, v in REAL.items() if k != "strategies"} | keys
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**config, "strategy": {"kind": "fedlora", "rank": 2}}), "utf-8")
    with pytest.raises(ConfigError, match=message):
        prepare(load_experiment(file)[0], tmp_path / "run", "x")
