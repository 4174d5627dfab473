"""``fedclock traces plot`` draws figures that show their CSV and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.figures import availability, device_tables, link_rates, style
from analysis.figures import traces as trace_figures
from analysis.traces.files import load
from tests.analysis.trace_commands import refused, traces
from tests.torture import long, some
from tests.traces.trace_files import write
from traces.availability import AvailabilityTrace, availability_text
from traces.importers.result import DeviceTable
from traces.statistics import online_share_by_hour

DAY_S = 86400.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def phones(home: Path) -> Path:
    rng = np.random.default_rng(0)
    devices = {}
    for name in range(20):
        edges = np.sort(rng.choice(int(7 * DAY_S), 40, replace=False)).astype(float)
        pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        devices[str(name)] = AvailabilityTrace.of(pairs, 7 * DAY_S)
    return write(home, "phones.csv", availability_text(devices))


@long
def test_plot_writes_each_figure_with_its_numbers(phones: Path) -> None:
    traces("plot", "lte-driving-1", "wifi-1", phones, "--output", "out")
    names = {f"{n}.{s}" for n in ("rate", "distribution", "day", "spans") for s in
             ("png", "pdf", "svg", "csv")}  # fmt: skip
    assert set(contents(Path("out"))) == names
    first = contents(Path("out"))
    assert refused("plot", "wifi-1", "--output", "out").startswith("out already holds rate.pdf")
    traces("plot", "lte-driving-1", "wifi-1", phones, "--output", "out", "--force")
    assert contents(Path("out")) == first


DRAWN = {
    "rate": link_rates.draw_rate,
    "distribution": link_rates.draw_distribution,
    "day": availability.draw_day,
    "spans": availability.draw_spans,
}


@pytest.mark.parametrize("name", some(DRAWN, 4))
def test_drawing_the_csv_gives_the_figure(phones: Path, name: str) -> None:
    traces("plot", "lte-driving-1", phones)
    # the python engine reads floats exactly
    frame = pd.read_csv(f"trace-figures/{name}.csv", engine="python")
    with style.context():
        picture = style.render(DRAWN[name](frame), "png")
    assert picture == Path(f"trace-figures/{name}.png").read_bytes()


@pytest.mark.parametrize("name", some(DRAWN, 4))
def test_a_figure_fits_its_place_and_its_legend_covers_no_data(phones: Path, name: str) -> None:
    loaded = load(["lte-driving", "wifi", str(phones)])
    frame = {
        "rate": lambda: link_rates.rate_frame(loaded.links),
        "distribution": lambda: link_rates.distribution_frame(loaded.links),
        "day": lambda: availability.day_frame(loaded.availability),
        "spans": lambda: availability.span_frame(loaded.availability),
    }[name]()
    with style.context():
        figure = DRAWN[name](frame)
        figure.draw_without_rendering()
    assert figure.get_figwidth() in (style.IEEE.column_in, style.IEEE.page_in)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= max(axes.bbox.y1 for axes in figure.axes)


def test_frames_hold_the_traces(phones: Path) -> None:
    loaded = load(["wifi-1", str(phones)])
    rate = link_rates.rate_frame(loaded.links)
    down = rate[rate["direction"] == "down"]
    carried = (down["rate_mbps"] * (down["end_s"] - down["time_s"])).sum() / down["end_s"].max()
    assert carried == pytest.approx(down["mean_mbps"].iloc[0])
    day = availability.day_frame(loaded.availability)
    devices = loaded.availability["phones"].values()
    assert day["share_online"].tolist() == online_share_by_hour(devices).tolist()
    share = np.mean([device.fraction_online for device in devices])
    assert day["share_online"].mean() == pytest.approx(share)  # all hours weigh the same
    found = availability.span_frame(loaded.availability)
    assert set(found.groupby("state")["share_of_spans"].max()) == {1.0}


def test_plot_refuses_more_links_than_a_figure_holds_and_tables_alone(home: Path) -> None:
    message = refused("plot", "wifi", "lte", "3g")
    assert message == "a figure holds at most 8 links, got 12; name fewer"
    write(home, "devices.csv", "device_id,model\n1,X\n")
    assert refused("plot", "devices.csv").startswith(
        "a figure needs a link, availability or numbers of devices"
    )
    assert list(contents(home)) == ["devices.csv"]


def test_availability_that_never_changes_is_plotted_without_spans(home: Path) -> None:
    write(home, "on.csv", availability_text({"a": AvailabilityTrace.of([(0, DAY_S)], DAY_S)}))
    traces("plot", "on.csv")
    assert set(contents(Path("trace-figures"))) == {
        f"day.{s}" for s in ("png", "pdf", "svg", "csv")
    }


def test_devices_of_a_table_are_drawn_by_speed_memory_and_rate(tmp_path: Path) -> None:
    columns = ("device_id", "model", "memory_bytes", "downlink_mbps", "speed")
    rows = (
        ("a", "x", "8000000000", "5", "1"),
        ("b", "y", "4000000000", "", "2"),
        ("c", "", "4000000000", "10", "0.5"),
        ("d", "", "8000000000", "0", "0.5"),
    )
    table = DeviceTable("phones", columns, rows)
    frame = device_tables.frame({"phones": table})
    memory = frame[frame["column"] == "memory_bytes"]
    assert memory["value"].tolist() == [4, 8]
    assert memory["share_of_devices"].tolist() == [0.5, 1]
    # Values that are unknown or 0 have no place on a logarithmic axis.
    rate = frame[frame["column"] == "downlink_mbps"]
    assert rate["value"].tolist() == [5, 10]
    assert rate["num_devices"].tolist() == [2, 2]
    figure = device_tables.draw(frame)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "Compute speed (multiple)", "Memory (GB)", "Downlink rate (Mbit/s)"
    ]  # fmt: skip
    assert set(trace_figures.render_all({}, {}, {"phones": table})) == {
        f"devices.{s}" for s in ("png", "pdf", "svg", "csv")
    }  # fmt: skip


def test_table_without_numbers_has_no_figure() -> None:
    table = DeviceTable("models", ("device_id", "model"), (("a", "x"),))
    assert trace_figures.render_all({}, {}, {"models": table}) == {}
