"""Figures show their CSV and nothing else, the same bytes every time, in one style."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from _pytest.mark.structures import ParameterSet
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from algorithms.registry import STRATEGIES
from analysis.figures import (
    FIGURES,
    FigureSpec,
    choices,
    colors,
    curves,
    fleet_conditions,
    gantt,
    memory,
    style,
    waiting,
    write,
)
from analysis.figures.lines import name_level, tell_apart
from analysis.metrics.study import Study, study_of
from analysis.runs.files import RunError
from analysis.runs.fleet import devices
from analysis.runs.load import Run
from analysis.units import significant
from simulator.config.schema import RunConfig, read_section
from simulator.world.build import World, build_world
from tests.torture import LONG


class Drawn(NamedTuple):
    """A drawn figure has its frame, and its bytes as SVG, which shows what other formats do."""

    spec: FigureSpec
    frame: pd.DataFrame
    figure: Figure
    svg: bytes


BY_NAME = {spec.name: spec for spec in FIGURES}


def second_seed(run: Run) -> Run:
    """Return the run as another seed might have gone: half as fast again, a little better."""
    rounds = run.rounds.assign(
        opened_s=1.5 * run.rounds["opened_s"],
        closed_s=1.5 * run.rounds["closed_s"],
        waiting_s=2.0 * run.rounds["waiting_s"],
        accuracy=run.rounds["accuracy"] + 0.02,
    )
    return replace(run, manifest={**run.manifest, "seed": 1}, rounds=rounds)


PHONES = {
    "profile": "phone-snapdragon-665", "count": 4, "link": "lte-driving",
    "availability": {"generator": {
        "kind": "on_off", "online_s": 20, "offline_s": 20, "period_s": 3600}},
}  # fmt: skip
BOARDS = {"profile": "jetson-tx2-maxn", "count": 2, "link": "wifi"}
CONFIG = {
    "name": "demo", "label": "a", "seed": 0, "fleet": {"devices": [PHONES, BOARDS]},
    "faults": {"leave": {"schedule": [{"device": 5, "at_s": 30.0}]}},
    "pacing": {"kind": "synchronous", "cohort": 2}, "stop": {"rounds": 2},
    "strategy": {"kind": "fedlora", "rank": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    """Return the conditions of a fleet that comes and goes."""
    return build_world(read_section(RunConfig, CONFIG), "test")


def in_world(run: Run, world: World) -> Run:
    """Return the run as if it had met this world."""
    met = {**run.manifest, "conditions_hash": world.conditions_hash}
    return replace(run, config=CONFIG, manifest=met)


def eventful(run: Run) -> Run:
    """Return the run with what only some have: stale updates, offline devices."""
    clients = run.clients.assign(
        staleness=np.arange(len(run.clients)) % 3, offline_s=0.2 * (run.clients["round"] % 2)
    )
    return replace(run, clients=clients)


@pytest.fixture(scope="module")
def comparison(runs: list[Run], world: World) -> Study:
    return study_of([in_world(eventful(run), world) for run in runs])


@pytest.fixture(scope="module")
def seeds(runs: list[Run]) -> Study:
    return study_of([*runs, *map(second_seed, runs)])


def cases(*in_short: str) -> list[ParameterSet]:
    """Return every figure, of which ``make test`` draws those that are named."""
    return [
        pytest.param(spec, id=spec.name, marks=() if spec.name in in_short else LONG)
        for spec in FIGURES
    ]


QUICK = cases("accuracy", "waiting", "rates")
"""The figures that are quick to draw: lines, bars, several axes and logarithmic ones."""
EVERY_KIND = cases("accuracy", "waiting", "rates", "gantt", "choices")
"""These figures have spans and heat maps too, which take ten times as long to draw."""
each_drawn = pytest.mark.parametrize("drawn", QUICK, indirect=True)


@pytest.fixture(scope="module")
def drawn(request: pytest.FixtureRequest, comparison: Study) -> Drawn:
    frame = request.param.frame(comparison)
    with style.context():
        figure = request.param.draw(frame, style.IEEE)
        return Drawn(request.param, frame, figure, style.render(figure, "svg"))


def picture(spec: FigureSpec, frame: pd.DataFrame) -> bytes:
    """Return the SVG alone: it takes a third of the time of all formats."""
    with style.context():
        return style.render(spec.draw(frame, style.IEEE), "svg")


@pytest.mark.parametrize("spec", QUICK)
def test_a_figure_is_written_in_every_format_and_twice_alike(
    spec: FigureSpec, comparison: Study, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        written = write(spec, comparison, tmp_path / name)
        assert sorted(path.suffix for path in written) == [".csv", ".pdf", ".png", ".svg"]
    for path in written:
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes()


@pytest.mark.parametrize("drawn", EVERY_KIND, indirect=True)
def test_drawing_the_csv_gives_the_figure(drawn: Drawn) -> None:
    csv = StringIO(drawn.frame.to_csv(index=False))
    read = pd.read_csv(csv, engine="python")  # this engine reads floats exactly
    assert len(read) > 0
    assert picture(drawn.spec, read) == drawn.svg


@each_drawn
def test_a_number_in_the_csv_moves_the_figure(drawn: Drawn) -> None:
    plotted = {
        "accuracy": "accuracy",
        "accuracy-rounds": "accuracy",
        "accuracy-traffic": "transferred_bytes",
        "accuracy-energy": "spent_j",
        "loss": "loss",
        "loss-rounds": "loss",
        "time-to-target": "at_s",
        "performance-profile": "time_to_target_s",
        "waiting": "waiting_s",
        "waiting-cdf": "waiting_s",
        "waiting-rounds": "waiting_s",
        "round-time": "upload_s",
        "memory": "saved activations",
        "traffic": "uploaded_bytes",
        "gantt": "start_s",
        "energy": "energy_radio_j",
        "choices": "depth",
        "staleness": "share",
        "participation": "num_aggregated",
        "own-tests": "own_accuracy",
        "rates": "rate_mbps",
        "fleet": "online_share",
        "availability": "share_paused",
        "ablation": "bytes_percent",
    }[drawn.spec.name]
    moved = drawn.frame.copy()
    moved.loc[moved.index[::2], plotted] *= 0.5
    assert picture(drawn.spec, moved) != drawn.svg


@each_drawn
def test_fonts_are_embedded_and_no_file_carries_a_date(drawn: Drawn) -> None:
    with style.context():
        content = style.render(drawn.figure, "pdf")
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"/CreationDate" not in content
    assert b"<dc:date>" not in drawn.svg


@each_drawn
def test_a_figure_fits_its_place_and_can_be_read_in_print(drawn: Drawn) -> None:
    neurips = style.PAPERS["neurips"]
    with style.context():
        narrow = drawn.spec.draw(drawn.frame, neurips)
        laid_out(narrow)
    for figure, paper in ((drawn.figure, style.PAPERS["ieee"]), (narrow, neurips)):
        assert figure.get_figwidth() in (paper.column_in, paper.page_in)
        assert figure.get_figheight() <= style.MAX_HEIGHT_IN
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert len(texts) > 3
        assert min(text.get_fontsize() for text in texts) >= 7


@pytest.fixture(scope="module")
def wide(comparison: Study) -> Study:
    """Return a study of three times as many variants, with long names."""
    runs = [
        replace(run, label=f"{run.label}-{'variant' * (n > 0)}{n}")
        for n in range(3)
        for run in comparison.runs
    ]
    return study_of(runs)


@each_drawn
def test_a_legend_covers_no_data_and_is_not_cut(drawn: Drawn, wide: Study) -> None:
    with style.context():
        figure = drawn.spec.draw(drawn.spec.frame(wide), style.IEEE)
        laid_out(figure)
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= max(axes.bbox.y1 for axes in figure.axes)


def laid_out(figure: Figure) -> None:
    """Put everything in its place, which is half the work of drawing it."""
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)


def test_a_users_own_style_changes_nothing(comparison: Study) -> None:
    frame = curves.frame(comparison)
    plain = picture(FIGURES[0], frame)
    with mpl.rc_context({"font.size": 20, "lines.linestyle": ":"}):
        assert picture(FIGURES[0], frame) == plain
        assert mpl.rcParams["font.size"] == 20


# Matrices from linear RGB to what each kind of colour-blind eye sees (Machado, Oliveira, Fernandes
# 2009).
CONE_LOSS = {
    "none": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [  # matrix from linear sRGB to XYZ, each row divided by the white point D65
    [0.4339499, 0.3762098, 0.1898403],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0177566, 0.1094680, 0.8727754],
]


def lab(color: str, seen: list[list[float]]) -> np.ndarray:
    """Return the CIELAB of a colour as that eye sees it."""
    coded = np.array(to_rgb(color))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = np.array(XYZ) @ np.clip(np.array(seen) @ linear, 0, 1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def pairs(*names: str) -> pd.DataFrame:
    """Return a frame of runs named label:strategy."""
    frame = pd.DataFrame([name.split(":") for name in names], columns=["label", "strategy"])
    numbers = colors.shades(zip(frame["label"], frame["strategy"], strict=True))
    return frame.assign(shade=frame["label"].map(numbers))


@pytest.mark.parametrize("strategy", [*colors.COLORS, "mine", "MyStrategy"])
def test_a_strategy_keeps_its_look_whatever_stands_beside_it(strategy: str) -> None:
    alone = colors.looks(pairs(f"q:{strategy}"))["q"]
    beside = [f"{kind}:{kind}" for kind in (*colors.COLORS, "another") if kind != strategy]
    together = colors.looks(pairs(*beside, f"q:{strategy}"))
    assert together["q"] == alone
    in_order = [*(name.split(":")[0] for name in beside), "q"]
    assert list(together) == in_order  # the order of the frame


def test_a_variant_before_it_does_not_take_the_look_of_the_strategy() -> None:
    looks = colors.looks(pairs("async-fedquad:fedquad", "fedquad:fedquad"))
    assert looks["fedquad"].color == colors.BLUE.lower()
    assert looks["async-fedquad"] != looks["fedquad"]


def test_every_run_of_a_comparison_looks_unlike_the_others() -> None:
    kinds = [f"{kind}{n}:{kind}" for kind in (*colors.COLORS, "new", "newer") for n in range(3)]
    looks = colors.looks(pairs(*kinds))
    assert len(set(looks.values())) == len(looks) == len(kinds)


def test_every_strategy_of_the_project_has_a_look_of_its_own() -> None:
    assert set(colors.COLORS) == set(STRATEGIES)


@pytest.mark.parametrize("seen", CONE_LOSS.values(), ids=CONE_LOSS)
def test_strategies_differ_in_colour_for_colour_blind_readers(seen: list[list[float]]) -> None:
    """2.3 in CIELAB is what an eye can just tell apart."""
    looks = colors.looks(pairs(*(f"{kind}:{kind}" for kind in colors.COLORS))).values()
    for one, two in combinations(looks, 2):
        apart = np.linalg.norm(lab(one.color, seen) - lab(two.color, seen))
        is_other_line = one.marker != two.marker and one.dash != two.dash
        assert apart > 5 * 2.3 or (apart > 2 * 2.3 and is_other_line), (one, two)


def test_accuracy_lines_hold_the_evaluations_of_each_run(comparison: Study) -> None:
    with style.context():
        figure = BY_NAME["accuracy"].draw(curves.frame(comparison), style.IEEE)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for run in comparison.runs:
        evaluated = run.rounds.dropna(subset="accuracy")
        assert len(evaluated) == 7  # the initial model, and every second of 12 rounds
        np.testing.assert_allclose(
            lines[run.label].get_ydata(), 100 * evaluated["accuracy"].to_numpy(), rtol=1e-12
        )


def test_memory_parts_add_up_to_the_peak_of_the_largest_plan(comparison: Study) -> None:
    frame = memory.frame(comparison)
    planned = frame[frame["num_plans"] > 0]
    assert (planned[list(memory.PARTS)].sum(axis=1) == planned["peak_memory_bytes"]).all()
    for run in comparison.runs:
        own = planned[planned["label"] == run.label].set_index("device_id")
        largest = run.clients.groupby("device_id")["peak_memory_bytes"].max()
        assert (own["peak_memory_bytes"] == largest.reindex(own.index)).all()
        assert own["num_oom"].sum() == (run.clients["outcome"] == "oom").sum()


def test_memory_shows_devices_that_got_no_plan_as_such(comparison: Study) -> None:
    frame = memory.frame(comparison)
    assert set(frame.loc[frame["label"] == "fedquad", "device_id"]) == set(range(6))
    unplanned = frame[(frame["label"] == "fedquad") & (frame["num_plans"] == 0)]
    assert set(unplanned["device_id"]) == {0, 5}
    assert unplanned["peak_memory_bytes"].isna().all()


def named(figure: Figure) -> list[str]:
    """Return what the legend of a figure names."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("module", [memory, choices])
def test_a_legend_names_what_is_there_alone(comparison: Study, module: Any) -> None:
    frame = module.frame(comparison)
    calm = frame[frame["label"] == "haflq"]
    calm = calm[calm["num_oom"] == 0] if "num_oom" in calm else calm[calm["outcome"] != "oom"]
    with style.context():
        both = [named(module.draw(one, style.IEEE)) for one in (frame, calm)]
    assert [sum("OOM" in name for name in names) for names in both] == [1, 0]
    if module is choices:
        full = calm[(calm["position"] == calm["position"].iloc[0])].assign(position=0)
        full = full.assign(num_rounds=len(full), round=range(1, 1 + len(full)))
        with style.context():
            assert ["no plan" in names for names in both] == [True, True]
            assert named(choices.draw(full, style.IEEE)) == []


def test_names_of_devices_lie_where_they_fit_their_bars(comparison: Study) -> None:
    frame = memory.frame(comparison)
    with style.context():
        few, many = (
            memory.draw(one, style.IEEE).axes[-1].get_xticklabels()[0].get_rotation()
            for one in (frame[frame["device_id"] < 3], pd.concat([frame] * 3))
        )
    assert (few, many) == (0, 90)


@pytest.mark.parametrize(
    ("names", "num_rows"),
    [
        (["compute", "radio", "idle while waiting"], 1),  # one column wider than a third
        (["compute", "radio", "idle while waiting", "download and upload"], 2),
        (["a scheduler with a name of some length"] * 3, 3),
    ],
)
def test_a_legend_has_the_fewest_rows_that_fit(names: list[str], num_rows: int) -> None:
    with style.context():
        figure = style.figure(style.IEEE.column_in, 1.0)
        figure.subplots()
        style.legend_above(figure, [style.legend_line("black", name) for name in names])
        laid_out(figure)
        box = figure.legends[0].get_window_extent()
    assert round((figure.get_figheight() - 1.0) / style.LINE_IN) == num_rows
    assert box.width <= figure.bbox.width


def test_a_budget_far_above_every_bar_is_marked_at_the_edge(comparison: Study) -> None:
    frame = memory.frame(comparison)
    roomy = frame["device_id"] == 4
    frame.loc[roomy, "memory_budget_bytes"] *= 100
    with style.context():
        figure = memory.draw(frame, style.IEEE)
    assert figure.axes[0].get_ylim()[1] < 300  # in MB: the bars still fill the panel
    assert "budget above the axis" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_traffic_ends_at_the_bytes_of_the_whole_run(comparison: Study) -> None:
    frame = curves.progress(comparison)
    for run in comparison.runs:
        last = frame[frame["label"] == run.label].iloc[-1]
        assert last["uploaded_bytes"] == run.clients["upload_bytes"].sum()
        assert last["transferred_bytes"] == (
            run.clients["upload_bytes"].sum() + run.clients["download_bytes"].sum()
        )


def test_waiting_is_the_mean_wait_of_the_aggregated_devices(comparison: Study) -> None:
    frame = waiting.round_frame(comparison)
    for run in comparison.runs:
        done = run.clients[run.clients["outcome"] == "aggregated"]
        expected = done.groupby("round")["waiting_s"].mean()
        own = frame[frame["label"] == run.label].set_index("round")["waiting_s"]
        pd.testing.assert_series_equal(own, expected, check_index_type=False)


def test_gantt_phases_fill_the_round_of_an_aggregated_device(comparison: Study) -> None:
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


def test_gantt_stops_every_run_at_the_third_round_of_the_slowest(comparison: Study) -> None:
    spans = gantt.frame(comparison)
    slowest_s = max(run.rounds.set_index("round")["closed_s"][3] for run in comparison.runs)
    assert (spans["window_s"] == slowest_s).all()
    assert (spans["start_s"] + spans["length_s"]).max() == pytest.approx(slowest_s)


def test_gantt_marks_oom_late_sat_out_and_aggregations(comparison: Study) -> None:
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


def test_gantt_shows_a_pause_offline_and_the_work_put_off_by_it(
    runs: list[Run], tmp_path: Path
) -> None:
    run = runs[1]
    plan = run.clients[run.clients["outcome"] == "aggregated"].iloc[0]
    gone_s = plan["started_s"] + plan["download_s"] + 0.25 * plan["train_s"]
    back_s = gone_s + 3.0
    key = {"device": int(plan["device_id"]), "round": int(plan["round"])}
    log = [{"at_s": gone_s, "event": "went_offline", **key},
           {"at_s": back_s, "event": "came_back", **key}]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    clients = run.clients.copy()
    clients["offline_s"] = 3.0 * (clients.index == plan.name)
    clients.loc[plan.name, "finished_s"] += 3.0
    spans = gantt.frame(study_of([replace(run, path=tmp_path, clients=clients)]))
    own = spans[(spans["device_id"] == key["device"]) & (spans["round"] == key["round"])]
    phases = own[own["phase"] != "wait"].sort_values("start_s")
    assert phases["phase"].tolist() == ["download", "compute", "offline", "compute", "upload"]
    expected = [plan["started_s"], gone_s - 0.25 * plan["train_s"], gone_s, back_s,
                back_s + 0.75 * plan["train_s"]]  # fmt: skip
    np.testing.assert_allclose(phases["start_s"], expected, rtol=1e-12)
    ends_s = (phases["start_s"] + phases["length_s"]).to_numpy()
    np.testing.assert_allclose(ends_s, [*expected[1:], plan["finished_s"] + 3.0], rtol=1e-12)


def test_the_fleet_is_drawn_as_the_run_met_it(comparison: Study, world: World) -> None:
    frame = fleet_conditions.frame(comparison)
    for row in frame.iloc[::40].itertuples():
        there = [device.availability.is_online(row.at_s) for device in world.fleet]
        there[5] = row.at_s < 30.0  # device 5 leaves for good then
        assert row.online_share == np.mean(there)
    step_s = frame["at_s"].iloc[1]
    traces = [device.link.downlink for device in world.fleet]
    first = [(t.carried_bytes(step_s) - t.carried_bytes(0.0)) / step_s / 125e3 for t in traces]
    assert frame["download_q50_mbps"].iloc[0] == pytest.approx(np.median(first))
    total_s = step_s * len(frame)
    assert total_s == pytest.approx(max(run.rounds["closed_s"].max() for run in comparison.runs))
    assert 0 < frame["online_share"].mean() < 1


def test_no_fleet_is_drawn_that_is_not_the_one_of_the_run(comparison: Study) -> None:
    first, *others = comparison.runs
    changed = replace(first, config={**CONFIG, "seed": 1})
    assert fleet_conditions.frame(study_of([changed, *others])).empty
    gone = {**CONFIG, "fleet": {"devices": [{**PHONES, "link": "no/such/file.csv"}]}}
    assert fleet_conditions.frame(study_of([replace(first, config=gone), *others])).empty


def test_choices_hold_one_row_a_plan(comparison: Study) -> None:
    frame = choices.frame(comparison)
    assert len(frame) == sum(len(run.clients) for run in comparison.runs)


def test_absent_blocks_are_a_choice_only_where_some_plan_has_any(runs: list[Run]) -> None:
    frame = choices.frame(study_of(runs))
    assert "num_absent_blocks" not in frame  # these runs have no such column, as older runs do not
    absent = np.arange(len(runs[0].clients)) % 3
    some = replace(runs[0], clients=runs[0].clients.assign(num_absent_blocks=absent))
    mixed = choices.frame(study_of([some, *runs[1:]]))
    assert mixed["num_absent_blocks"].tolist() == [*absent, *[0] * (len(frame) - len(absent))]
    with style.context():
        num_plain, num_mixed = (len(choices.draw(rows, style.IEEE).axes) for rows in (frame, mixed))
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
    assert write(FIGURES[0], study_of(blind), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_lines_that_cover_each_other_are_told_apart_by_their_widths() -> None:
    axes = Figure().subplots()
    axes.plot([0, 1, 2], [0, 1, 2], label="first")
    axes.plot([0, 2], [2, 0], label="other")
    axes.plot([0, 2], [0, 2], label="last")
    tell_apart(axes)
    first, other, last = (line.get_linewidth() for line in axes.get_lines())
    assert first > other == last


@pytest.mark.parametrize(
    ("heights", "side"),
    [([0.55, 0.55, 0.9, 0.9], "right"), ([0.9, 0.9, 0.55, 0.55], "left")],
)
def test_the_name_of_a_level_stands_where_no_line_passes(heights: list[float], side: str) -> None:
    axes = style.figure(3.5, 1.95).subplots()
    axes.plot([0, 4, 6, 10], heights, label="run")
    axes.set(xlim=(0, 10), ylim=(0, 1))
    name_level(axes, 0.5, "target 50 %")
    (text,) = axes.texts
    assert text.get_horizontalalignment() == side


def test_logarithmic_axes_have_plain_numbers(comparison: Study) -> None:
    for name in ("rates", "fleet"):
        with style.context():
            figure = BY_NAME[name].draw(BY_NAME[name].frame(comparison), style.IEEE)
            laid_out(figure)
        axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
        ticks = [axis.get_ticklabels(which="both") for axis in axes if axis.get_scale() == "log"]
        assert ticks
        assert not [text for texts in ticks for text in texts if "mathdefault" in text.get_text()]


def test_a_number_that_rounding_carries_over_keeps_three_digits() -> None:
    assert [significant(value) for value in (0.99999, 9.996, 99.96)] == ["1.00", "10.0", "100"]


def test_figures_of_single_devices_show_those_asked_for(comparison: Study) -> None:
    some = replace(comparison, devices=(1, 3))
    assert set(memory.frame(some)["device_id"]) == {1, 3}
    assert set(choices.frame(some)["device_id"]) == {1, 3}
    assert set(gantt.frame(some)["device_id"].dropna()) <= {1, 3}
    whole = memory.frame(comparison)
    own = whole[whole["device_id"].isin([1, 3])].reset_index(drop=True)
    pd.testing.assert_frame_equal(memory.frame(some), own, check_dtype=False)
    with pytest.raises(RunError, match=r"some of those that took part \(0 to 5\), got 9"):
        memory.frame(replace(comparison, devices=(9,)))
