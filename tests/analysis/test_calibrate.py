"""Calibration has a grid, a fit that finds what is there, and a refusal where nothing is found."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.calibration.calibrate import Bench, measure, save
from analysis.calibration.step_fit import (
    FULL,
    MAX_SPREAD,
    QUICK,
    SEED,
    UnmeasuredError,
    fit_rates,
    grid,
    predicted_s,
)
from analysis.commands.calibrate import calibrate
from devices.architectures import model_spec
from devices.cost.measured import MeasuredStep
from devices.fleet.catalog import profile
from devices.models.catalog import resolve
from devices.models.heads import text_head
from devices.vocabulary.plan import TrainingPlan
from simulator.config.problems import UserError
from tests.devices.cost.test_measured import PROFILE, RATES, table
from tests.devices.training.tiny_task import save_model
from tests.torture import long


def noisy(sigma: float, seed: int = 0) -> list[MeasuredStep]:
    rng = np.random.default_rng(seed)
    return [
        replace(row, step_s=row.step_s * float(np.exp(sigma * rng.normal()))) for row in table(FULL)
    ]


def test_fit_recovers_the_rates_that_the_times_were_made_with() -> None:
    fit = fit_rates(table(FULL), 32)
    assert fit.rates == pytest.approx(RATES, rel=1e-6)
    assert fit.median_error == pytest.approx(0, abs=1e-9)
    assert fit.is_good


def as_if(**seconds_per_unit: float) -> list[MeasuredStep]:
    """Return the table, its steps taking the seconds of these parts in place of the true ones."""
    rates = RATES._replace(**{name: 1 / value for name, value in seconds_per_unit.items()})
    return [replace(row, step_s=predicted_s(row, rates)) for row in table(FULL)]


def test_a_part_that_takes_no_measurable_time_is_bounded_by_what_was_measured() -> None:
    rows = as_if(pack_bytes_per_s=1e-30)
    fit = fit_rates(rows, 32)
    assert fit.bounded == ("packing",)
    # At its rate, packing takes one per cent of the step in which it weighs most.
    most = max(row.packed_bytes / row.step_s for row in rows if not row.is_held_out)
    assert fit.rates.pack_bytes_per_s == pytest.approx(100 * most)
    assert fit.rates.flops_per_s == pytest.approx(RATES.flops_per_s, rel=0.1)
    assert fit.is_good


def test_arithmetic_that_takes_no_measurable_time_has_no_rate() -> None:
    with pytest.raises(UnmeasuredError, match="the arithmetic of a training step must take a meas"):
        fit_rates(as_if(flops_per_s=1e-30), 32)


def test_a_width_without_a_rate_is_left_out_of_the_profile(tmp_path: Path) -> None:
    unseen = [replace(row, compute_bits=16) for row in as_if(flops_per_s=1e-30)]
    said = save(tmp_path / "mine.toml", [*table(FULL), *unseen], PROFILE)
    found = profile(str(tmp_path / "mine.toml"))
    assert found.measured is not None
    assert list(found.measured) == [32]
    assert any("left out of the profile: the arithmetic" in line for line in said)
    with pytest.raises(UserError, match="at 16 bits it could not be told from the rest"):
        save(tmp_path / "other.toml", unseen, PROFILE)
    assert not (tmp_path / "other.toml").exists()


def test_held_out_error_is_about_the_noise_of_the_times() -> None:
    # Times off by 5 %: the median of |N(0, 0.05)| is 0.034, the 90th percentile 0.082, and of 16
    # the median scatters by about a third, and the fit adds sqrt(6/40) of the noise.
    fit = fit_rates(noisy(0.05), 32)
    assert 0.01 < fit.median_error < 0.07
    assert fit.tail_error < 0.16


def test_held_out_steps_have_no_part_in_the_fit() -> None:
    rows = table(FULL)
    spoiled = [replace(row, step_s=9 * row.step_s) if row.is_held_out else row for row in rows]
    assert fit_rates(spoiled, 32).rates == fit_rates(rows, 32).rates
    assert fit_rates(spoiled, 32).median_error == pytest.approx(8 / 9)


def test_every_level_of_the_grid_comes_as_often_as_any_other() -> None:
    model = model_spec(resolve("tiny"), ("query", "value"), head=text_head(16))
    points = [one for one in grid(model, FULL) if not one.is_held_out]
    for levels in (
        [one.plan.weight_formats[0] for one in points],
        [one.plan.depth for one in points],
        [one.activation_bits for one in points],
        [(one.plan.batch_size, one.length) for one in points],
    ):
        counts = Counter(levels).values()
        assert max(counts) - min(counts) <= 1
    assert len(points) == FULL.num_fitted
    assert grid(model, QUICK)[0].plan.batch_size * grid(model, QUICK)[0].length <= QUICK.max_tokens
    assert SEED == 0  # another seed would change the grid that all machines are measured on


def test_a_noisy_machine_is_refused_and_the_old_profile_kept(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    save(output, table(), PROFILE)
    before = output.read_bytes(), output.with_suffix(".csv").read_bytes()
    wild = [replace(row, spread=0.5) for row in table()]
    message = (
        f"must lie within {MAX_SPREAD:.0%} .* got 50% at 32 bits.*; .*mine.toml is kept as it was"
    )
    with pytest.raises(UserError, match=message):
        save(output, wild, PROFILE)
    assert (output.read_bytes(), output.with_suffix(".csv").read_bytes()) == before


def test_saved_profile_can_be_named_and_says_how_good_it_is(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    said = save(output, table(), PROFILE)
    found = profile(str(output))
    assert found.measured is not None
    assert found.measured[32] == pytest.approx(RATES, rel=1e-6)
    assert found.confidence == "high"
    assert "median 0.0%" in found.source
    assert "median error 0.0%" in said[1]
    bad = [replace(row, step_s=2 * row.step_s) if row.is_held_out else row for row in table()]
    assert "more than the 10% and 20%" in save(output, bad, PROFILE)[1]
    assert profile(str(output)).confidence == "low"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": Path("mine.json")}, "--output must be a .toml file, got mine.json"),
        ({"like": "jetson-tx2-turbo"}, "a power mode of jetson-tx2 must be one of"),
        ({"compute": "tpu"}, "compute must be one of auto, cpu, cuda, got tpu"),
        ({"model": "no/such"}, "model must be one of"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    given: dict[str, Any], message: str
) -> None:
    asked = {
        "output": Path("x.toml"),
        "name": "x",
        "model": "tiny",
        "targets": "query,value",
        "threads": 1,
    } | given
    with pytest.raises(UserError, match=message):
        calibrate(**asked)


def test_stopwatch_times_a_step_of_every_kind() -> None:
    from devices.training.stopwatch import Stopwatch, hosts

    source, model = (
        resolve("tiny"),
        model_spec(resolve("tiny"), ("query", "value"), head=text_head(16)),
    )
    stopwatch = Stopwatch(source, model, hosts("cpu")[32], threads=1)
    for one in grid(model, QUICK)[:6]:
        assert stopwatch.step_s(one.plan, one.length) > 0


class Loaded:
    """This clock measures steps as on a machine on which other programs come and go."""

    def __init__(self, sigma: float) -> None:
        self._rng, self._sigma = np.random.default_rng(0), sigma

    def step_s(self, plan: TrainingPlan, length: int) -> float:
        return 0.01 * plan.batch_size * length * float(np.exp(self._sigma * self._rng.normal()))


def bench_of(model: str) -> Bench:
    spec = model_spec(resolve(model), ("query", "value"), head=text_head(16))
    return Bench(resolve(model), spec, QUICK, compute="cpu", threads=1)


def test_times_taken_on_a_loaded_machine_leave_the_old_profile(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    save(output, list(measure("mine", bench_of("tiny"), {32: partial(Loaded, 0.01)})), PROFILE)
    before = output.read_bytes(), output.with_suffix(".csv").read_bytes()
    # The interquartile range of exp(N(0, 0.6)) is 0.8 of its median; of three repeats, about half.
    wild = list(measure("mine", bench_of("tiny"), {32: partial(Loaded, 0.6)}))
    with pytest.raises(UserError, match=r"at 32 bits.*; .*mine.toml is kept as it was"):
        save(output, wild, PROFILE)
    assert (output.read_bytes(), output.with_suffix(".csv").read_bytes()) == before


def test_a_model_of_other_layers_needs_their_names(tmp_path: Path) -> None:
    directory = str(save_model(tmp_path, "gpt2"))
    asked = {"output": Path("x.toml"), "name": "x", "threads": 1, "model": directory}
    with pytest.raises(UserError, match=r"targets must be among c_attn, .*, got query, value"):
        calibrate(**asked, targets="query,value")


@long
def test_steps_of_a_traced_model_are_rows_like_any_other(tmp_path: Path) -> None:
    source = resolve(str(save_model(tmp_path, "gpt2")))
    spec = model_spec(source, ("c_attn",), head=text_head(4))
    bench = Bench(source, spec, QUICK._replace(num_fitted=2, num_held_out=1), "cpu", 1)
    rows = list(measure("mine", bench, {32: partial(Loaded, 0.01)}))
    assert len(rows) == 3
    assert all(row.forward_flops > 0 and row.forward_bytes > 0 for row in rows)
