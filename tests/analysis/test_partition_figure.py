"""`fedclock shards` shows a partition, and draws it from the numbers that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.commands.main import app
from analysis.figures import partition, style
from devices.datasets.partition import dirichlet_shards, partition_statistics
from simulator.config.problems import UserError

DEMO = Path(__file__).parents[2] / "simulator" / "experiments" / "demo.yaml"


def test_the_rows_of_devices_add_up_to_the_statistics() -> None:
    groups = np.arange(600) % 6
    shards = dirichlet_shards(groups, 9, alpha=0.3, rng=np.random.default_rng(0))
    rows = partition.frame(shards, groups)
    found = partition_statistics(shards, groups)
    assert rows["examples"].sum() == found["examples held"] == 600
    assert rows["groups"].mean() == pytest.approx(found["groups a device, mean"])
    assert rows["distance"].mean() == pytest.approx(found["distance from the whole, mean"])
    assert rows["distance"].max() == found["distance from the whole, largest"]
    by_hand = np.abs(np.bincount(groups[shards[2]], minlength=6) / len(shards[2]) - 1 / 6).sum() / 2
    assert rows["distance"][2] == pytest.approx(by_hand)
    assert list(partition.frame(shards, None)) == ["device_id", "examples"]


def test_a_panel_shows_the_share_of_devices_at_or_below_each_value() -> None:
    rows = pd.DataFrame({"device_id": range(4), "examples": [5, 1, 5, 9]})
    with style.context():
        figure = partition.draw(rows)
    ((axes,),) = [figure.axes]
    (line,) = axes.lines
    assert np.asarray(line.get_xdata()).tolist() == [1, 1, 5, 5, 9]
    assert np.asarray(line.get_ydata()).tolist() == [0, 25, 50, 75, 100]


def test_the_command_writes_the_figure_and_never_over_another(tmp_path: Path) -> None:
    words = ["shards", str(DEMO), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "12,800" in done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"partition.{ending}" for ending in (*style.FORMATS, "csv")}
    assert pd.read_csv(tmp_path / "out" / "partition.csv")["examples"].sum() == 12_800
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2 or isinstance(again.exception, UserError)
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
