"""Figures show their CSV and nothing else, the same bytes every time, in one style."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from analysis.comparison import Comparison, compare
from analysis.figures import (
    FIGURES,
    FigureSpec,
    accuracy,
    choices,
    gantt,
    memory,
    style,
    traffic,
    waiting,
    write,
)
from analysis.fleet import devices
from analysis.load import Run


class Drawn(NamedTuple):
    """A figure as it was written."""

    spec: FigureSpec
    frame: pd.DataFrame
    folder: Path


@pytest.fixture(scope="module")
def comparison(runs: list[Run]) -> Comparison:
    return compare(runs)


@pytest.fixture(scope="module", params=FIGURES, ids=[spec.name for spec in FIGURES])
def drawn(
    request: pytest.FixtureRequest,
    comparison: Comparison,
    tmp_path_factory: pytest.TempPathFactory,
) -> Drawn:
    folder = tmp_path_factory.mktemp("figures")
    write(request.param, comparison, folder)
    return Drawn(request.param, request.param.frame(comparison), folder)


def picture(spec: FigureSpec, frame: pd.DataFrame) -> bytes:
    with style.context():
        return style.render(spec.draw(frame), "png")


def test_a_figure_is_written_thrice_and_twice_alike(
    drawn: Drawn, comparison: Comparison, tmp_path: Path
) -> None:
    written = write(drawn.spec, comparison, tmp_path)
    assert sorted(path.suffix for path in written) == [".csv", ".pdf", ".png"]
    for path in written:
        assert path.read_bytes() == (drawn.folder / path.name).read_bytes()


def test_drawing_the_csv_gives_the_figure(drawn: Drawn) -> None:
    # the python engine reads floats exactly
    read = pd.read_csv(drawn.folder / f"{drawn.spec.name}.csv", engine="python")
    assert len(read) > 0
    assert picture(drawn.spec, read) == (drawn.folder / f"{drawn.spec.name}.png").read_bytes()


def test_a_number_in_the_csv_moves_the_figure(drawn: Drawn) -> None:
    plotted = {
        "accuracy": "accuracy",
        "waiting": "waiting_s",
        "memory": "saved activations",
        "traffic": "uploaded_bytes",
        "gantt": "start_s",
        "choices": "depth",
    }[drawn.spec.name]
    moved = drawn.frame.assign(**{plotted: drawn.frame[plotted] / 2})
    assert picture(drawn.spec, moved) != (drawn.folder / f"{drawn.spec.name}.png").read_bytes()


def test_pdf_embeds_truetype_fonts_and_carries_no_date(drawn: Drawn) -> None:
    content = (drawn.folder / f"{drawn.spec.name}.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"/CreationDate" not in content


@pytest.mark.parametrize("copies", [1, 3])
def test_a_figure_is_as_wide_as_its_place_and_its_legend_covers_no_data(
    drawn: Drawn, comparison: Comparison, copies: int
) -> None:
    runs = [
        replace(run, label=f"{run.label}-{'variant' * (n > 0)}{n}")
        for n in range(copies)
        for run in comparison.runs
    ]
    with style.context():
        figure = drawn.spec.draw(drawn.spec.frame(compare(runs)))
        figure.draw_without_rendering()
    assert figure.get_figwidth() in (style.COLUMN_IN, style.PAGE_IN)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= max(axes.bbox.y1 for axes in figure.axes)


def test_a_users_own_style_changes_nothing(comparison: Comparison) -> None:
    frame = accuracy.frame(comparison)
    plain = picture(FIGURES[0], frame)
    with mpl.rc_context({"font.size": 20, "lines.linestyle": ":"}):
        assert picture(FIGURES[0], frame) == plain
        assert mpl.rcParams["font.size"] == 20


def pairs(*names: str) -> pd.DataFrame:
    """A frame of runs named label:strategy."""
    return pd.DataFrame([name.split(":") for name in names], columns=["label", "strategy"])


def test_a_strategy_keeps_its_colour_whatever_stands_beside_it() -> None:
    alone = style.looks(pairs("q:fedquad"))["q"]
    among = style.looks(pairs("a:fedlora", "b:haflq", "c:new", "q:fedquad"))["q"]
    assert alone == among


def test_every_run_of_a_comparison_looks_unlike_the_others() -> None:
    looks = style.looks(
        pairs("a:fedlora", "b:fedlora", "c:fedquad", "d:haflq", "e:new", "f:newer", "g:haflq")
    )
    assert len({look.color for look in looks.values()}) == 7


def test_accuracy_lines_hold_the_evaluations_of_each_run(comparison: Comparison) -> None:
    with style.context():
        figure = accuracy.draw(accuracy.frame(comparison))
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for run in comparison.runs:
        evaluated = run.rounds.dropna(subset="accuracy")
        assert len(evaluated) == 7  # the initial model, and every second of 12 rounds
        np.testing.assert_array_equal(
            lines[run.label].get_ydata(), 100 * evaluated["accuracy"].to_numpy()
        )


def test_memory_parts_add_up_to_the_peak_of_the_largest_plan(comparison: Comparison) -> None:
    frame = memory.frame(comparison)
    planned = frame[frame["num_plans"] > 0]
    assert (planned[list(memory.PARTS)].sum(axis=1) == planned["peak_memory_bytes"]).all()
    for run in comparison.runs:
        own = planned[planned["label"] == run.label].set_index("device_id")
        largest = run.clients.groupby("device_id")["peak_memory_bytes"].max()
        assert (own["peak_memory_bytes"] == largest.reindex(own.index)).all()
        assert own["num_oom"].sum() == (run.clients["outcome"] == "oom").sum()


def test_memory_shows_devices_that_got_no_plan_as_such(comparison: Comparison) -> None:
    frame = memory.frame(comparison)
    assert set(frame.loc[frame["label"] == "fedquad", "device_id"]) == set(range(6))
    unplanned = frame[(frame["label"] == "fedquad") & (frame["num_plans"] == 0)]
    assert set(unplanned["device_id"]) == {0, 5}
    assert unplanned["peak_memory_bytes"].isna().all()


def test_a_budget_far_above_every_bar_is_marked_at_the_edge(comparison: Comparison) -> None:
    frame = memory.frame(comparison)
    roomy = frame["device_id"] == 4
    frame.loc[roomy, "memory_budget_bytes"] *= 100
    with style.context():
        figure = memory.draw(frame)
    assert figure.axes[0].get_ylim()[1] < 300  # in MB: the bars still fill the panel
    assert "budget above the axis" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_traffic_ends_at_the_bytes_of_the_whole_run(comparison: Comparison) -> None:
    frame = traffic.frame(comparison)
    for run in comparison.runs:
        last = frame[frame["label"] == run.label].iloc[-1]
        assert last["uploaded_bytes"] == run.clients["upload_bytes"].sum()
        assert last["transferred_bytes"] == (
            run.clients["upload_bytes"].sum() + run.clients["download_bytes"].sum()
        )


def test_waiting_is_the_mean_wait_of_the_aggregated_devices(comparison: Comparison) -> None:
    frame = waiting.frame(comparison)
    for run in comparison.runs:
        done = run.clients[run.clients["outcome"] == "aggregated"]
        expected = done.groupby("round")["waiting_s"].mean()
        own = frame[frame["label"] == run.label].set_index("round")["waiting_s"]
        pd.testing.assert_series_equal(own, expected, check_index_type=False)


def test_gantt_phases_fill_the_round_of_an_aggregated_device(comparison: Comparison) -> None:
    spans = gantt.frame(comparison)
    run = comparison.runs[1]
    closed_s = run.rounds.set_index("round")["closed_s"]
    own = spans[(spans["label"] == run.label) & spans["phase"].isin(list(gantt.PHASES))]
    done = run.clients[(run.clients["outcome"] == "aggregated") & (run.clients["round"] <= 2)]
    assert len(done) > 0
    for row in done[["device_id", "round"]].itertuples():
        bars = own[(own["device_id"] == row.device_id) & (own["round"] == row.round)]
        assert set(bars["phase"]) == {"download", "compute", "upload", "wait"}
        ends_s = bars["start_s"] + bars["length_s"]
        assert ends_s.max() == pytest.approx(closed_s[row.round])
        assert bars["length_s"].sum() == pytest.approx(
            closed_s[row.round] - closed_s[row.round - 1]
        )


def test_gantt_stops_every_run_at_the_third_round_of_the_slowest(comparison: Comparison) -> None:
    spans = gantt.frame(comparison)
    slowest_s = max(run.rounds.set_index("round")["closed_s"][3] for run in comparison.runs)
    assert (spans["window_s"] == slowest_s).all()
    assert (spans["start_s"] + spans["length_s"]).max() == pytest.approx(slowest_s)


def test_gantt_marks_oom_late_sat_out_and_aggregations(comparison: Comparison) -> None:
    spans = gantt.frame(comparison)
    counts = spans.groupby(["label", "phase"]).size()
    window_s = spans["window_s"].iloc[0]
    for run in comparison.runs:
        ended = run.clients[run.clients["finished_s"] <= window_s]
        for outcome in ("oom", "late"):
            assert counts.get((run.label, outcome), 0) == (ended["outcome"] == outcome).sum()
        closed = run.rounds[(run.rounds["round"] > 0) & (run.rounds["closed_s"] <= window_s)]
        assert counts[run.label, "aggregation"] == len(closed)
    assert set(spans.loc[spans["phase"] == "sat out", "device_id"]) == {0, 5}


def test_gantt_of_a_large_fleet_shows_devices_spread_over_it() -> None:
    shown = gantt._spread(list(range(100)), 10)
    assert shown == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def test_choices_hold_one_row_a_plan(comparison: Comparison) -> None:
    frame = choices.frame(comparison)
    assert len(frame) == sum(len(run.clients) for run in comparison.runs)


def test_absent_blocks_are_a_choice_only_where_some_plan_has_any(runs: list[Run]) -> None:
    frame = choices.frame(compare(runs))
    assert "num_absent_blocks" not in frame  # nor in the runs, as older ones have no such column
    absent = np.arange(len(runs[0].clients)) % 3
    some = replace(runs[0], clients=runs[0].clients.assign(num_absent_blocks=absent))
    mixed = choices.frame(compare([some, *runs[1:]]))
    assert mixed["num_absent_blocks"].tolist() == [*absent, *[0] * (len(frame) - len(absent))]
    with style.context():
        num_plain, num_mixed = (len(choices.draw(rows).axes) for rows in (frame, mixed))
    assert num_mixed == num_plain * 6 // 5


def test_devices_stand_by_rising_budget_in_every_figure(runs: list[Run]) -> None:
    order = devices(runs)
    assert order["memory_budget_bytes"].is_monotonic_increasing
    assert list(order.index) == [5, 0, 1, 2, 3, 4]


def test_a_device_that_no_strategy_gave_a_plan_is_still_shown(runs: list[Run]) -> None:
    order = devices([run for run in runs if run.strategy == "fedquad"])
    assert set(order.index[:2]) == {0, 5}
    assert list(order["profile"][:2]) == ["raspberry-pi-4", "raspberry-pi-4"]


def test_nothing_is_drawn_of_models_never_evaluated(runs: list[Run], tmp_path: Path) -> None:
    blind = [replace(run, rounds=run.rounds.assign(accuracy=np.nan)) for run in runs]
    assert write(FIGURES[0], compare(blind), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_svg_is_deterministic_too(comparison: Comparison) -> None:
    frame = waiting.frame(comparison)
    with style.context():
        one, two = (style.render(waiting.draw(frame), "svg") for _ in range(2))
    assert one == two
    assert b"<dc:date>" not in one
    assert io.BytesIO(one).getbuffer().nbytes > 1000
