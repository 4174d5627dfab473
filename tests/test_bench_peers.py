"""The benchmark against other frameworks runs in its smallest form: FedClock and the plain loop."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_overhead import Timed
from bench_peers import COMPARED, difference, participants

from devices.vocabulary.trainer import NullTrainer
from peers import same_steps, with_fedclock
from peers.export import Size, Way, export
from peers.in_turns import take_turns
from peers.job import Job
from peers.measure import Participant, RunError, measure
from peers.report import BEGIN, DOCUMENT, END, Findings, table, write
from peers.venvs import Framework, InstallError, python_of
from peers.with_fedclock import Noting
from simulator.workers.trainers import TrainsMeanwhile
from tests.torture import long

SIZE = Size(clients=2, cohort=2, steps=2, batch_size=4, rounds=2)
FP32 = Way({"dtype": "fp32"}, attention="eager")
HERE = Path(sys.executable)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the job as files."""
    folder: Path = tmp_path_factory.mktemp("bench") / "job"
    export(folder, SIZE, FP32)
    return folder


@pytest.fixture(autouse=True)
def noting_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discard the note by which a participant says when its first batch was made."""
    monkeypatch.setenv("BENCH_BEGUN", os.devnull)


@long
def test_fedclock_and_the_loop_by_hand_take_the_same_steps(folder: Path) -> None:
    theirs, ours = same_steps.train(folder, 2), with_fedclock.train(folder, 2)
    initial = Job.load(folder).initial
    assert theirs.keys() == ours.keys() == initial.keys()
    for name, start in initial.items():
        assert not np.array_equal(start, ours[name].numpy())
        np.testing.assert_allclose(theirs[name].detach(), ours[name], atol=2e-5)


@long
def test_in_turns_every_round_but_the_last_is_timed_for_both(folder: Path) -> None:
    ((ours_s, loop_s),) = take_turns(folder, 2)
    assert ours_s > 0
    assert loop_s > 0


@long
def test_turns_of_other_steps_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "job"
    shutil.copytree(folder, other)
    arrays = dict(np.load(other / "arrays.npz"))
    of_the_first = arrays["batches"][:, :1].repeat(SIZE.clients, axis=1)
    np.savez(other / "arrays.npz", **arrays | {"batches": of_the_first})
    with pytest.raises(ValueError, match=r"both adapters must be the same to 0\.0001, got"):
        take_turns(other, 1)


def test_fedclock_with_other_batches_takes_part_where_it_is_asked_for() -> None:
    findings = Findings({}, {}, [])
    everyone = participants(findings, COMPARED)["as shipped"]
    assert tuple(one.name for one in everyone) == ("FedClock", "loop by hand", *COMPARED[1:-1])
    assert {one.overrides for one in everyone} >= {("training.batches=lengths",)}
    assert len(participants(findings, ["FedClock"])["as shipped"]) == 1


def test_trainers_that_are_watched_can_still_train_while_they_evaluate() -> None:
    for watched in (Timed(NullTrainer(2)), Noting(NullTrainer(2))):
        assert isinstance(watched, TrainsMeanwhile)


def test_every_client_draws_from_its_own_shard(folder: Path) -> None:
    job = Job.load(folder)
    first, second = job.shards
    assert not set(first) & set(second)
    drawn = job.draw(1, np.random.default_rng(0))
    assert drawn.shape == (SIZE.steps, SIZE.batch_size)
    assert set(drawn.ravel()) <= set(second)
    assert len(set(drawn.ravel())) == drawn.size


@long
def test_a_run_tells_its_times_in_order_and_its_memory(folder: Path, tmp_path: Path) -> None:
    run = measure(Participant("loop", "loop", HERE), folder, 1, tmp_path / "out")
    assert 0 < run.imports_s < run.first_batch_s < run.trained_s
    assert run.cpu_s > 0
    assert run.peak_bytes > 100e6
    assert (tmp_path / "out" / "adapter.safetensors").exists()


def test_a_participant_that_breaks_says_why(folder: Path, tmp_path: Path) -> None:
    absent = Participant("none", "no_such_module", HERE)
    with pytest.raises(RunError, match=r"No module named 'peers\.no_such_module'"):
        measure(absent, folder, 1, tmp_path / "out")


@long
def test_a_framework_that_cannot_be_installed_says_why(tmp_path: Path) -> None:
    missing = Framework(str(tmp_path / "no-such-1.0-py3-none-any.whl"))
    with pytest.raises(InstallError, match=r"no-such-1\.0"):
        python_of("missing", missing, tmp_path)


def found() -> Findings:
    """Return findings in which FedClock takes 2 s a round and then 3, pfl 6 and then 12, and Flower
    broke."""
    findings = Findings(
        {"processor": "p", "cores": 2, "versions": {"torch": "2"}},
        {"clients": 2, "cohort": 2, "steps": 1, "batch_size": 4},
        [1, 3],
        failures={"Flower": "did not run: no memory"},
        rates=[{"float32": 5e9, "bfloat16": 10e9}] * 2,
        flops_per_round=[10e9, 10e9],
        accuracy={"FedClock": [0.5, 0.7], "pfl": [0.6, 0.7]},
        turns=[[(2.1, 2.0), (2.2, 2.0)], [(2.0, 2.0)]],
        fleets={10: 100_000_000, 10_000: 110_000_000},
    )
    for job, name, slopes in (
        ("as shipped", "FedClock", (2, 3)),
        ("as shipped", "pfl", (6, 12)),
        ("same steps", "loop, same batches", (4,)),
        ("same steps", "FedClock, fp32", (4,)),
    ):
        for slope in slopes:
            for rounds in (1, 3) if job == "as shipped" else (1,):
                findings.runs.setdefault(job, []).append(
                    {
                        "participant": name,
                        "rounds": rounds,
                        "imports_s": 5.0,
                        "first_batch_s": 6.5,
                        "trained_s": 6.5 + slope * rounds,
                        "cpu_s": 6.0 + slope * rounds,
                        "peak_bytes": 500_000_000,
                        "tree_peak_bytes": 600_000_000,
                    }
                )
    return findings


def test_the_table_has_slopes_and_ratios_of_each_repeat() -> None:
    text = table(found())
    assert "| pfl | 9.00 (6.00 to 12.00) | 3.50 (3.00 to 4.00) | 6.5 (6.5 to 6.5)" in text
    assert "600 | 65.0% (60.0% to 70.0%) |" in text
    assert "in turns | 2.000 (2.000 to 2.000) | 2.100 (2.000 to 2.200) | +5.0% (+0.0% to" in text
    assert "FedClock reaches 42% (33% to 50%) of it" in text
    assert "100 and 110 | 1.10 times" in text


def test_a_framework_that_did_not_run_is_named_with_the_reason() -> None:
    assert "* **Flower** did not run: no memory" in table(found())


def test_the_table_replaces_what_stood_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}old\n{END}after\n", "utf-8")
    write(found(), document, tmp_path / "peers.json")
    text = document.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert table(found()) in text
    assert "old" not in text
    assert DOCUMENT.read_text("utf-8").count(BEGIN) == DOCUMENT.read_text("utf-8").count(END) == 1


def test_the_difference_in_accuracy_is_paired_and_has_its_standard_error() -> None:
    said = difference([0.50, 0.60, 0.70], [0.51, 0.60, 0.73])  # -1, 0 and -3 points
    assert said == "-1.33 points of accuracy, standard error 0.88, 3 seeds"
    assert "standard error nan, 1 seeds" in difference([0.5], [0.4])
