"""The page of a report is whole in one file, safe, and works in a real browser."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.report import report_plans
from analysis.report.data import ReportData
from analysis.report.formats import table_files
from analysis.report.pages import to_html_page
from analysis.report.report import read_studies, write_report
from analysis.report.table import TableCell, study_table
from analysis.runs.blocks import ALONE
from analysis.runs.files import RunError
from analysis.runs.load import Run, load_run
from tests.analysis.browser import Page
from tests.analysis.browser import page as open_page
from tests.torture import LONG

pytestmark = list(LONG)

WriteRun = Callable[..., Path]
EVIL = "an_odd.label-1"
OUTSIDE = re.compile(r"(?:src|href)=[\"'](?!data:|#)|@import|url\(|https?://(?!www\.w3\.org)")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> Path:
    """Write the report of three finished runs, one of whose labels attacks the page, and of one
    that never ended."""
    root = tmp_path_factory.mktemp("page")
    for strategy in ("fedlora", "fedquad"):
        write_run(root / "runs", strategy, num_rounds=6)
    evil = write_run(root / "runs", "haflq", num_rounds=6)
    manifest = json.loads((evil / "manifest.json").read_text()) | {"label": EVIL}
    (evil / "manifest.json").write_text(json.dumps(manifest))
    write_run(root / "runs", "legend", num_rounds=1, status="interrupted")
    write_report([root / "runs"], root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def column(page: Page, table: str, place: int) -> list[str]:
    script = f"[...document.querySelectorAll('#{table} tbody tr')]"
    return list(page.value(f"{script}.map((row) => row.cells[{place}].textContent)"))


def click_head(page: Page, table: str, title: str) -> int:
    """Sort a table by the column of this title and return the column's place."""
    heads = f"[...document.querySelectorAll('#{table} thead th')]"
    place = page.value(f"{heads}.findIndex((head) => head.textContent === '{title}')")
    assert place >= 0
    page.value(f"{heads}[{place}].querySelector('button').click()")
    return int(place)


def choose_round(page: Page, run: int, number: int) -> None:
    page.value(
        f"chooser.run.value = {run}; chooser.round.value = {number};"
        " chooser.round.dispatchEvent(new Event('change')); showRound()"
    )


def test_the_page_names_nothing_outside_itself(file: Path) -> None:
    text = re.sub(r"data:[^\"']+", "data:", file.read_text("utf-8"))
    assert not OUTSIDE.search(text)
    assert "default-src 'none'" in text


def test_what_users_write_is_text_and_never_markup(file: Path) -> None:
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not [name for name, _ in attrs if name.startswith("on")]

    Tags().feed(file.read_text("utf-8"))
    assert tags.count("script") == 2
    assert tags.count("img") == tags.count("figure") > 3


def test_the_same_runs_give_the_same_page(file: Path, tmp_path: Path) -> None:
    write_report([file.parent / "runs"], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_the_page_loads_without_an_error_or_a_request(
    browser: Page, file: Path, width: int
) -> None:
    browser.told.clear()
    browser.open(file, width=width)
    assert not browser.named("Runtime.exceptionThrown")
    assert not browser.named("Runtime.consoleAPICalled")
    assert not browser.named("Log.entryAdded")
    asked = {told["request"]["url"] for told in browser.named("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {file.resolve().as_uri()}
    assert browser.value("document.title").endswith(": FedClock")
    loaded = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    assert browser.value(loaded)
    # Wide tables scroll within themselves; the page itself does not.
    assert browser.value("document.documentElement.scrollWidth") <= width
    shot = browser.screenshot()
    shown_width, shown_height = struct.unpack(">II", shot[16:24])
    assert shown_width == width
    assert shown_height > 1500


def test_a_left_out_run_is_named(browser: Page, file: Path) -> None:
    browser.open(file, width=1200)
    text = browser.value("document.querySelector('.problems').textContent")
    assert "legend" in text
    assert "'interrupted'" in text


def test_the_summary_has_metrics_down_and_variants_across_as_the_terminal_has(
    browser: Page, file: Path
) -> None:
    browser.open(file, width=1200)
    rows = "[...document.querySelectorAll('#comparison tr')]"
    heads, *body = browser.value(f"{rows}.map((row) => [...row.cells].map((c) => c.textContent))")
    table = study_table(read_studies([file.parent / "runs"])[ALONE])
    assert heads == ["", *table.variants]
    wanted = [[row.title, *(cell.text for cell in row.cells)] for row in table.rows]
    assert [row for row in body if len(row) > 1] == wanted
    groups = [row[0] for row in body if len(row) == 1]
    assert groups == list(dict.fromkeys(row.group for row in table.rows))
    assert groups[-3:] == ["Traffic and energy", "Lost work", "Across devices"]


def test_a_summary_of_five_variants_fits_a_laptop(
    browser: Page, file: Path, tmp_path: Path
) -> None:
    """The widest cells that occur are a value with its interval and a bound beside "not
    reached"."""
    data = ReportData(read_studies([file.parent / "runs"])[ALONE], [])
    names = tuple(f"FedQuad, depth {number} and 4 bits" for number in range(5))
    texts = ("1,043 [1,021, 1,066]", "not reached (> 1,043)")
    rows = tuple(
        replace(row, cells=tuple(TableCell(texts[place % 2]) for place in range(5)))
        for row in data.table.rows
    )
    vars(data)["table"] = replace(data.table, variants=names, rows=rows)
    (tmp_path / "five.html").write_text(to_html_page(data, tmp_path), "utf-8")
    browser.open(tmp_path / "five.html", width=1280)
    box = "document.querySelector('#comparison').parentElement"
    assert browser.value(f"{box}.scrollWidth") <= browser.value(f"{box}.clientWidth")


def test_a_click_sorts_a_table_up_and_a_second_one_down(browser: Page, file: Path) -> None:
    browser.open(file, width=1200)
    rising = sorted(column(browser, "fleet", 0))
    for wanted in (rising, rising[::-1]):
        click_head(browser, "fleet", "Device")
        assert column(browser, "fleet", 0) == wanted
    assert browser.value("document.querySelectorAll('#fleet [aria-sort]').length") == 1


def test_a_chosen_round_shows_its_plans(browser: Page, file: Path) -> None:
    browser.open(file, width=1200)
    labels = browser.value("[...document.querySelectorAll('#run option')].map((o) => o.text)")
    assert EVIL in labels
    run = load_run(next((file.parent / "runs").glob("fedquad*")))
    for number in (1, 4):
        choose_round(browser, labels.index("FedQuad"), number)
        plans = run.clients[run.clients["round"] == number].sort_values("device_id")
        wanted = [str(device) for device in plans["device_id"]]
        browser.until(f"document.querySelectorAll('#devices tbody tr').length === {len(plans)}")
        browser.until(f"inspected.runs[{labels.index('FedQuad')}].rows !== undefined")
        assert column(browser, "devices", 0) == wanted
        place = click_head(browser, "devices", "Depth")
        assert [int(d) for d in column(browser, "devices", place)] == sorted(plans["depth"])
        lanes = browser.value("document.querySelectorAll('#devices .lane i.download').length")
        assert lanes == (plans["download_s"] > 0).sum()
    choose_round(browser, 0, 0)
    browser.until("!document.querySelector('#nobody').hidden")
    assert browser.value("document.querySelector('#nobody').textContent").startswith("No plan")


def test_only_differing_settings_are_shown_on_demand(browser: Page, file: Path) -> None:
    browser.open(file, width=1200)
    visible = "[...document.querySelectorAll('#settings-table tbody tr')].filter((r) => !r.hidden)"
    names = f"{visible}.map((row) => row.cells[0].textContent)"
    assert len(browser.value(names)) > 1
    browser.value("document.querySelector('#only').click()")
    assert browser.value(names) == ["strategy.kind"]


def test_a_long_run_is_carried_up_to_a_bound_and_says_so(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report_plans.inspection(runs)["runs"][0]["note"] == ""
    monkeypatch.setattr(report_plans, "MAX_PLANS", 20)
    (cut,) = report_plans.inspection(runs[:1])["runs"]
    assert cut["num_shown"] == runs[0].clients["round"].iloc[20]
    assert f"rounds before {cut['num_shown']}" in cut["note"]


def test_columns_that_a_run_lacks_are_left_out(runs: list[Run]) -> None:
    clients = runs[0].clients.assign(num_shrinks=0, battery_share=float("nan"))
    newer = Run(**{**vars(runs[0]), "clients": clients})
    older = Run(**{**vars(runs[1]), "clients": clients.drop(columns="num_shrinks")})
    names = [column["name"] for column in report_plans.inspection([newer])["columns"]]
    assert {"num_shrinks", "battery_share"} <= set(names)
    assert "num_shrinks" not in {column.name for column in report_plans.columns_of([newer, older])}


def test_a_page_is_not_written_over_a_folder(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.html").mkdir()
    with pytest.raises(RunError, match=r"must be written to a file, got .*x\.html, which is a f"):
        write_report(folders[:1], tmp_path / "x.html")


def test_runs_of_several_seeds_stand_as_variants_and_damaged_ones_are_named(
    write_run: WriteRun, tmp_path: Path
) -> None:
    for seed in (0, 1):
        for strategy in ("fedlora", "fedquad"):
            write_run(tmp_path / "runs", strategy, num_rounds=3, seed=seed)
    broken = write_run(tmp_path / "runs", "haflq", num_rounds=3, seed=1)
    (broken / "rounds.parquet").write_bytes(b"not a table")
    study = read_studies([tmp_path / "runs"])[ALONE]
    assert study.num_seeds.max() == 2
    assert set(table_files({ALONE: study})) == {
        "differences.csv", "runs.csv", "table.csv", "table.md", "table.tex"
    }  # fmt: skip
    text = to_html_page(ReportData(study, []), tmp_path)
    assert "2 seeds a variant, the value of each" in text
    assert "<li>2 seeds: a comparison takes at least 5.</li>" in text
    assert "<li>seed: 0, 1</li>" in text
    options = re.findall(r'<option value="\d">([^<]+)</option>', text)
    assert sorted(options) == ["FedLoRA s0", "FedLoRA s1", "FedQuad s0", "FedQuad s1"]
    (left_out,) = study.left_out
    assert str(broken / "rounds.parquet") in left_out
    assert left_out.split(":")[0] in text
