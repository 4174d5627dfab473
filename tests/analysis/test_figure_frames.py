"""The numbers behind each figure are those of the runs, and a missing one is shown as such."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.figures import (
    FIGURES,
    FigureSpec,
    ablation,
    bands,
    colors,
    conditions,
    curves,
    participation,
    render,
    round_time,
    sensitivity,
    style,
    target,
    waiting,
)
from analysis.metrics.study import Study, study_of
from analysis.report.table import study_table
from analysis.runs.files import RunError
from analysis.runs.load import Run
from analysis.units import SECONDS
from devices.tasks import classification


@pytest.fixture(scope="module")
def comparison(runs: list[Run]) -> Study:
    return study_of(runs)


def as_seed(run: Run, seed: int, **columns: float) -> Run:
    """Return the run under another seed, with these columns of its rounds multiplied."""
    rounds = run.rounds.assign(**{name: k * run.rounds[name] for name, k in columns.items()})
    return replace(run, manifest={**run.manifest, "seed": seed}, rounds=rounds)


def lines(*seeds: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Return a frame of one label with x and y of each seed."""
    parts = [pd.DataFrame({"seed": n, "x": x, "y": y}) for n, (x, y) in enumerate(seeds)]
    return pd.concat(parts).assign(label="a", strategy="fedquad", shade=0)


def test_a_curve_goes_on_to_the_end_of_the_last_seed() -> None:
    frame = lines(([0.0, 2.0, 4.0], [0.0, 2.0, 4.0]), ([0.0, 3.0], [3.0, 6.0]))
    curve = bands.curve(frame, x="x", y="y", band="range")
    assert curve.x.tolist() == [0.0, 2.0, 3.0, 4.0]  # the second seed ends at 3, and keeps its 6
    assert curve.low.tolist() == [0.0, 2.0, 3.0, 4.0]
    assert curve.high.tolist() == [3.0, 5.0, 6.0, 6.0]
    assert curve.middle.tolist() == [1.5, 3.5, 4.5, 5.0]


def test_a_confidence_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is absent")
    values = np.array([[1.0], [2.0], [4.0]])
    low, middle, high = bands.summary(values, "ci95", (-math.inf, math.inf))
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem(values[:, 0]))
    assert (low[0], high[0]) == pytest.approx(expected, rel=1e-3)
    assert middle[0] == pytest.approx(7 / 3)


def test_a_confidence_interval_ends_where_its_metric_must() -> None:
    frame = lines(([0.0, 1.0], [0.90, 0.05]), ([0.0, 1.0], [0.99, 0.001]))
    free, cut = (
        bands.curve(frame, x="x", y="y", band="ci95", possible=possible)
        for possible in ((-math.inf, math.inf), classification.ACCURACY.possible)
    )
    assert free.high[0] > 1
    assert free.low[1] < 0
    assert (cut.high[0], cut.low[1]) == (1.0, 0.0)
    assert cut.middle.tolist() == free.middle.tolist()


def test_quartiles_are_of_the_seeds() -> None:
    low, middle, high = bands.BANDS["quartiles"].summary(np.array([[1.0], [2.0], [3.0], [9.0]]))
    assert (low[0], middle[0], high[0]) == (1.75, 2.5, 4.5)


@pytest.mark.parametrize("band", bands.BANDS)
def test_one_seed_has_no_band_and_no_note(band: str) -> None:
    frame = lines(([0.0, 1.0], [2.0, 3.0]))
    curve = bands.curve(frame, x="x", y="y", band=band)
    assert curve.low.tolist() == curve.middle.tolist() == curve.high.tolist() == [2.0, 3.0]
    assert bands.note(frame, band) == ""


def test_curves_hold_the_running_sums_of_bytes_and_joules(comparison: Study) -> None:
    frame = curves.frame(comparison)
    for run in comparison.runs:
        last = frame[frame["label"] == run.label].iloc[-1]
        assert last["spent_j"] == pytest.approx(run.rounds["energy_j"].sum())
        both = run.rounds["download_bytes"].sum() + run.rounds["upload_bytes"].sum()
        assert last["transferred_bytes"] == both


def test_time_to_target_is_when_the_mean_of_three_evaluations_is_at_it(comparison: Study) -> None:
    frame = target.frame(comparison).set_index("label")
    for run in comparison.runs:
        evaluated = run.rounds.dropna(subset="accuracy")
        means = evaluated["accuracy"].rolling(3).mean()
        hits = evaluated[means >= comparison.target.value]
        assert frame.loc[run.label, "at_s"] == hits["closed_s"].iloc[0]
        assert frame.loc[run.label, "is_reached"]


def test_a_target_that_a_seed_misses_gives_a_bound_that_says_so(runs: list[Run]) -> None:
    quad = runs[1]
    poor = as_seed(quad, 1, accuracy=0.5)
    frame = target.frame(study_of([quad, poor, as_seed(runs[2], 0, accuracy=0.1)], target=0.55))
    assert frame["is_reached"].tolist() == [True, False, False]
    assert frame["at_s"].iloc[1] == quad.rounds["closed_s"].max()
    axes = Figure().subplots()
    target.plot(frame, axes)
    texts = [text.get_text() for text in axes.texts]
    assert texts[0].startswith("> ")
    assert texts[0].endswith("(1 of 2)")
    assert texts[1].endswith("(0 of 1)")


def test_a_bar_to_the_target_is_the_median_of_the_table_whatever_the_band(runs: list[Run]) -> None:
    quad = runs[1]
    late = replace(quad, rounds=quad.rounds.assign(closed_s=3 * quad.rounds["closed_s"]))
    late = replace(late, manifest={**late.manifest, "seed": 2})
    never = as_seed(quad, 3, accuracy=0.1)
    for seeds in ([quad, as_seed(quad, 1), late], [quad, late, never], [quad, never]):
        study = study_of(seeds, target=0.55)
        (known,) = study.estimates("time_to_target_s").values()
        frame = target.frame(study)
        for band in bands.BANDS:
            found = target.medians(frame, band=band).iloc[0]
            assert (found["middle"], found["upper"]) == (known.value, known.upper)
            axes = Figure().subplots()
            target.plot(frame, axes, band=band)
            unit = SECONDS.unit(frame["at_s"])
            assert axes.patches[0].get_width() == pytest.approx(known.value / unit.size)
        assert found["high"] >= found["middle"]
    mean_s = target.frame(study_of([quad, as_seed(quad, 1), late], target=0.55))["at_s"].mean()
    assert known.value < mean_s  # a bar of the mean would be longer than the median in the table


def test_a_time_to_target_over_a_key_is_the_median_where_it_is_known(runs: list[Run]) -> None:
    def ranked(rank: int, run: Run) -> Run:
        config = {**run.config, "strategy": {"kind": "fedquad", "rank": rank}}
        return replace(run, config={**config, "seed": run.manifest["seed"]})

    quad = runs[1]
    never = [as_seed(quad, seed, accuracy=0.1) for seed in (1, 2)]
    arrived = [ranked(4, run) for run in (quad, as_seed(quad, 1), never[1])]
    missed = [ranked(8, run) for run in (quad, *never)]
    frame = sensitivity.frame([*arrived, *missed], "strategy.rank", target=0.55)
    axes = Figure().subplots()
    sensitivity.plot(frame, axes, sensitivity.TIME_TO_TARGET)
    x, y = axes.get_lines()[0].get_data()
    study = study_of([replace(run, config={}) for run in arrived], target=0.55)
    (known,) = study.estimates("time_to_target_s").values()
    assert list(x) == [4.0]  # the medians at the other values are not known
    unit = SECONDS.unit(frame["time_to_target_s"])
    assert list(y) == pytest.approx([known.value / unit.size])


def test_mean_waiting_is_over_rounds_and_the_cdf_over_updates(comparison: Study) -> None:
    means, waits = waiting.mean_frame(comparison), waiting.wait_frame(comparison)
    for run in comparison.runs:
        done = run.clients[run.clients["outcome"] == "aggregated"]
        by_round = done.groupby("round")["waiting_s"].mean()
        own = means.loc[means["label"] == run.label, "waiting_s"]
        assert own.tolist() == pytest.approx([by_round.mean()])
        own = waits.loc[waits["label"] == run.label, "waiting_s"]
        assert own.tolist() == done["waiting_s"].tolist()


def test_the_phases_of_a_plan_add_up_to_its_mean_time(comparison: Study) -> None:
    frame = round_time.time_frame(comparison).set_index("label")
    for run in comparison.runs:
        plans = run.clients
        done = plans["outcome"] == "aggregated"
        busy_s = plans["finished_s"] - plans["started_s"]
        total_s = busy_s.sum() + plans.loc[done, "waiting_s"].sum()
        parts = frame.loc[run.label, list(round_time.PHASES)]
        assert parts.sum() == pytest.approx(total_s / len(plans))
        assert parts["lost_s"] == pytest.approx(busy_s[~done].sum() / len(plans))


def test_energy_parts_add_up_to_that_of_the_rounds(comparison: Study) -> None:
    frame = round_time.energy_frame(comparison).set_index("label")
    for run in comparison.runs:
        parts = frame.loc[run.label, list(round_time.ENERGY)]
        assert parts.sum() == pytest.approx(run.rounds["energy_j"].sum())


def test_every_device_counts_in_participation_even_one_never_merged(
    comparison: Study,
) -> None:
    frame = participation.device_frame(comparison)
    for run in comparison.runs:
        own = frame[frame["label"] == run.label].set_index("device_id")["num_aggregated"]
        assert list(own.index) == list(run.devices["device_id"])
        assert own.sum() == run.rounds["num_aggregated"].sum()
    assert (frame.loc[frame["label"] == "fedquad", "num_aggregated"] == 0).sum() == 2


def test_shares_of_staleness_add_up_and_plain_rounds_are_left_out(runs: list[Run]) -> None:
    stale = np.where(runs[0].clients["round"] > 6, 2, 0)
    late = replace(runs[0], clients=runs[0].clients.assign(staleness=stale))
    plain = replace(runs[1], clients=runs[1].clients.assign(staleness=0))
    frame = participation.staleness_frame(study_of([late, plain]))
    assert set(frame["label"]) == {late.label}
    assert frame["share"].sum() == pytest.approx(1.0)
    assert frame["num_updates"].sum() == (late.clients["outcome"] == "aggregated").sum()
    assert frame.loc[frame["staleness"] == 1, "num_updates"].tolist() == [0]
    assert participation.staleness_frame(study_of([plain])).empty


def test_a_rate_is_the_bits_over_the_seconds_of_a_transfer(comparison: Study) -> None:
    frame = conditions.rate_frame(comparison)
    run = comparison.runs[0]
    plan = run.clients[run.clients["upload_bytes"] > 0].iloc[0]
    own = frame[(frame["label"] == run.label) & (frame["device_id"] == plan["device_id"])]
    own = own[(own["round"] == plan["round"]) & (own["direction"] == "upload")]
    expected = 8 * plan["upload_bytes"] / plan["upload_s"] / 1e6
    assert own["rate_mbps"].tolist() == pytest.approx([expected])
    assert len(frame) == sum(
        (one.clients[f"{way}_bytes"] > 0).sum()
        for one in comparison.runs
        for way in ("download", "upload")
    )


def test_offline_shares_count_plans_paused_and_plans_lost(runs: list[Run]) -> None:
    clients = runs[0].clients.assign(offline_s=0.0)
    clients.loc[clients.index[0], "offline_s"] = 3.0
    clients.loc[clients.index[1], "outcome"] = "offline"
    frame = conditions.offline_frame(study_of([replace(runs[0], clients=clients)]))
    (run,) = frame.to_dict("records")
    assert run["share_paused"] == run["share_lost"] == 1 / len(clients)
    assert conditions.offline_frame(study_of(runs)).empty


def test_changes_are_against_the_baseline_of_the_same_seed(runs: list[Run]) -> None:
    base, quad = runs[0], runs[1]
    frame = ablation.frame(
        study_of([base, quad, as_seed(base, 1, energy_j=2.0), as_seed(quad, 1, energy_j=3.0)])
    )
    ratio = quad.rounds["energy_j"].sum() / base.rounds["energy_j"].sum()
    assert frame["energy_percent"].tolist() == pytest.approx(
        [100 * (ratio - 1), 100 * (1.5 * ratio - 1)]
    )
    assert ablation.frame(study_of([base])).empty


def test_a_change_of_time_is_unknown_where_one_missed_the_target(runs: list[Run]) -> None:
    poor = as_seed(runs[1], 0, accuracy=0.1)
    frame = ablation.frame(study_of([runs[0], poor], target=0.5))
    assert math.isnan(frame["time_percent"].iloc[0])


def test_a_change_of_bytes_over_seeds_is_that_of_the_differences(runs: list[Run]) -> None:
    def seed(run: Run, number: int, factor: float) -> Run:
        return as_seed(run, number, download_bytes=factor, upload_bytes=factor, energy_j=factor)

    base = [seed(runs[0], number, 1.0) for number in range(3)]
    other = [seed(runs[1], number, factor) for number, factor in enumerate((0.5, 1.0, 4.0))]
    study = study_of([*base, *other])
    told = study.differences.set_index("metric").loc["energy_j"]
    change = next(one for one in ablation.SPENT if one.column == "energy_percent")
    axes = Figure().subplots()
    ablation.plot(ablation.frame(study), axes, change)
    assert axes.patches[0].get_width() == pytest.approx(100 * (told["value"] - 1))


def test_sensitivity_refuses_runs_that_differ_in_more_than_the_key(runs: list[Run]) -> None:
    def ranked(rank: int, devices: int) -> Run:
        config = {**runs[1].config, "strategy": {"kind": "fedquad", "rank": rank}}
        return replace(runs[1], config={**config, "fleet": {"devices": devices}})

    frame = sensitivity.frame([ranked(4, 6), ranked(8, 6)], "strategy.rank", target=0.5)
    assert frame["value"].tolist() == [4, 8]
    with pytest.raises(RunError, match=r"differ in strategy\.rank and the seed alone.*devices too"):
        sensitivity.frame([ranked(4, 6), ranked(8, 7)], "strategy.rank")


def test_scalability_needs_fleets_of_several_sizes(runs: list[Run]) -> None:
    small = replace(runs[0], devices=runs[0].devices.head(3))
    frame = sensitivity.scale_frame([small, runs[0]])
    assert frame["num_devices"].tolist() == [3, 6]
    assert frame["wall_s_per_round"].tolist() == pytest.approx([61.5 / 12] * 2)
    with pytest.raises(RunError, match="several sizes, got one"):
        sensitivity.scale_frame(runs)
    assert render(frame, sensitivity.draw_scale, style.IEEE)["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("spec", FIGURES, ids=[spec.name for spec in FIGURES])
def test_a_run_without_accuracy_or_merged_update_is_drawn_or_left_out(
    runs: list[Run], spec: FigureSpec
) -> None:
    rounds = runs[0].rounds.assign(accuracy=np.nan, loss=np.nan, num_aggregated=0, num_oom=1)
    clients = runs[0].clients.assign(outcome="oom")
    frame = spec.frame(study_of([replace(runs[0], rounds=rounds, clients=clients)]))
    if not frame.empty:
        with style.context():
            assert isinstance(spec.draw(frame, style.IEEE), Figure)


def test_a_variant_looks_alike_in_a_figure_that_leaves_its_sibling_out(runs: list[Run]) -> None:
    stale = runs[1].clients.assign(staleness=1)
    variant = replace(runs[1], label="async", clients=stale)
    plain = replace(runs[1], clients=stale.assign(staleness=0))
    comparison = study_of([runs[0], variant, plain])
    alone = participation.staleness_frame(comparison)
    assert set(alone["label"]) == {"async"}
    assert colors.looks(alone)["async"] == colors.looks(curves.frame(comparison))["async"]


def test_a_number_that_not_all_seeds_have_says_of_how_many_it_is(runs: list[Run]) -> None:
    late = as_seed(runs[1], 2, closed_s=50.0)  # has fewer than three evaluations in the equal time
    study = study_of([runs[1], as_seed(runs[1], 1, accuracy=0.9), late])
    rows = {row.title: row.cells[0].text for row in study_table(study).rows}
    at_time = next(text for title, text in rows.items() if title.startswith("Accuracy after"))
    assert at_time.endswith("(2 of 3)")
    assert "of 3)" not in rows["Final accuracy (%)"]
