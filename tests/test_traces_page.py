"""The examples of docs/traces.md do what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from simulator.config.experiment import load_experiment
from simulator.world.build import build_world
from tests.command_line import fedclock
from tests.simulator.own_data import write_data
from tests.torture import long
from traces.public_sets import PUBLIC_SETS

PAGE = (Path(__file__).parents[1] / "docs" / "traces.md").read_text("utf-8")


def test_the_page_lists_every_public_set_with_its_licence_and_whether_its_hash_is_known() -> None:
    section = PAGE.partition("## Public sets by name\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    for name, public in PUBLIC_SETS.items():
        (row,) = (row for row in rows if f"`{name}`" in row)
        assert public.licence.split("-")[0].split()[0] in row
        assert row.endswith("| known |" if public.sha256 else "| not known |")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


def ghent_log(start_ms: int) -> str:
    """Return five minutes on foot, with epoch, time, place, bytes and milliseconds of each
    second."""
    rows = []
    for second in range(300):
        at_ms = start_ms + 1000 * second
        size = 400_000 + 300_000 * (second // 20 % 3) + 1000 * (second % 17)
        rows.append(f"{at_ms} {1000 * second} 51.05 3.73 {size} 1000")
    return "\n".join(rows) + "\n"


@long
def test_the_examples_import_show_plot_fit_and_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        log = ghent_log(1_453_121_790_686 + 10_000_000 * number)
        Path(f"report_foot_000{number}.log").write_text(log, "utf-8")
    for line in block("sh").splitlines():
        words = []
        for word in line.partition("#")[0].split()[1:]:
            words += sorted(map(str, Path().glob(word))) if "*" in word else [word]
        done = fedclock(*words, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert Path("foot.toml").is_file()
    assert list(Path("figures").iterdir())
    write_data(tmp_path / "data")
    experiment = {
        "name": "replay",
        "task": {"model": "tiny", "data": str(tmp_path / "data")},
        "pacing": {"kind": "synchronous", "cohort": 2},
        "shards": {"kind": "drawn", "examples": 4},
        "training": "none",
        "stop": {"rounds": 1},
        "strategies": {"fedlora": {"kind": "fedlora"}},
        **yaml.safe_load(block("yaml")),
    }
    Path("x.yaml").write_text(yaml.safe_dump(experiment), "utf-8")
    (config,) = load_experiment(Path("x.yaml"), [])
    fleet = build_world(config, "x.yaml").fleet
    assert [fleet[k].link.name for k in range(4)] == ["report_foot_0001"] * 4
    pooled = {fleet[k].link.name for k in range(4, 13)}
    assert pooled <= {"report_foot_0001", "report_foot_0002"}
