"""A study is cut in slices, goes on from what is kept, and its page follows from that alone."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis.metrics.study import study
from analysis.runs.files import RunError
from analysis.runs.frames import open_runs
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.world.build import build_world
from studies import page as page_maker
from studies import run as runner
from studies.comparisons import Change
from studies.kept import keep, read_kept, study_of_kept
from tests.torture import long, some

STUDIES = Path(runner.__file__).parent
PLANS = sorted(STUDIES.glob("*plan.yaml"), reverse=True)
"""The plans of the studies, the quick one first."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the quick study: runs/ and results/."""
    folder = tmp_path_factory.mktemp("study")
    assert runner.main(_quick(folder)) == 0
    return folder


def _quick(folder: Path, minutes: float = 10) -> list[str]:
    plan = str(STUDIES / "quick-plan.yaml")
    where = ["--results", str(folder / "results"), "--runs", str(folder / "runs")]
    return [plan, "--minutes", str(minutes), *where]


@long
def test_kept_runs_give_the_study_of_their_run_folders(done: Path) -> None:
    whole = study(open_runs([done / "runs" / "quick"]))
    kept = study_of_kept(read_kept(done / "results" / "quick"))
    assert (kept.target, kept.baseline, kept.variants) == (
        whole.target,
        whole.baseline,
        whole.variants,
    )
    columns = whole.per_run.columns
    order = whole.per_run.index
    pd.testing.assert_frame_equal(kept.per_run.loc[order, columns], whole.per_run)


def test_a_kept_run_is_small_and_says_where_it_comes_from(done: Path) -> None:
    for file in (done / "results" / "quick").iterdir():
        assert file.stat().st_size < 8_000
    facts = json.loads((done / "results" / "quick" / "fedquad-s0.json").read_text())
    assert facts["conditions_hash"]
    assert {"torch", "python", "fedclock"} <= set(facts["versions"])
    assert len(facts["blocks"]) == 2  # the drawn model has two blocks


def test_what_is_kept_is_not_run_again_on_a_machine_without_the_run_folders(
    done: Path, tmp_path: Path
) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    assert runner.main(_quick(tmp_path)) == 0
    assert not (tmp_path / "runs").exists()


@long
def test_a_slice_ends_in_time_and_the_next_goes_on_to_the_same_bytes(
    done: Path, tmp_path: Path
) -> None:
    assert runner.main(_quick(tmp_path, minutes=1e-3)) == 0
    assert len(list((tmp_path / "results").rglob("*.json"))) < 6
    assert runner.main(_quick(tmp_path)) == 0
    for file in (done / "results" / "quick").glob("*.csv"):
        assert (tmp_path / "results" / "quick" / file.name).read_bytes() == file.read_bytes()


def test_runs_that_met_other_conditions_are_not_compared(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results" / "quick", tmp_path / "quick")
    file = tmp_path / "quick" / "fedquad-s1.json"
    file.write_text(file.read_text().replace('"conditions_hash": "', '"conditions_hash": "0'))
    with pytest.raises(RunError, match="must share"):
        study_of_kept(read_kept(tmp_path / "quick"))


def test_a_damaged_file_is_named(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results" / "quick", tmp_path / "quick")
    (tmp_path / "quick" / "fedquad-s1.json").write_text("{")
    with pytest.raises(RunError, match=r"fedquad-s1\.json must be a kept run"):
        read_kept(tmp_path / "quick")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("- { experiment: quick.yaml }", "must name an experiment and seeds"),
        ("- { experiment: quick.yaml, seeds: [0], strategies: [none] }", "no strategy 'none'"),
        ("experiment: quick.yaml", "must be a list"),
        ("- { experiment: quick.yaml, seeds: [0], rates: 1.0e-3 }", "rates such as [1.0e-3,"),
    ],
)
def test_a_plan_that_says_too_little_is_refused(
    entry: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(STUDIES / "quick.yaml", tmp_path)
    (tmp_path / "plan.yaml").write_text(entry)
    assert runner.main([str(tmp_path / "plan.yaml"), "--results", str(tmp_path / "results")]) == 2
    assert said in capsys.readouterr().err


def test_each_rate_of_a_plan_is_an_experiment_whose_name_says_it(tmp_path: Path) -> None:
    shutil.copy(STUDIES / "quick.yaml", tmp_path)
    entry = (
        "{ experiment: quick.yaml, seeds: [99], strategies: [fedquad], rates: [1.0e-3, 1.04e-3] }"
    )
    (tmp_path / "plan.yaml").write_text(f"- {entry}")
    steps = runner.steps_of(tmp_path / "plan.yaml", tmp_path, tmp_path)
    assert [step.experiment for step in steps] == ["quick-rate-1e-3", "quick-rate-1.04e-3"]
    configs = load_experiment(tmp_path / "quick.yaml", steps[1].run.overrides)
    (own,) = (config for config in configs if config.label == "fedquad")
    assert own.training.learning_rate == 1.04e-3


def test_every_experiment_of_the_studies_is_valid() -> None:
    experiments = [file for file in STUDIES.glob("*.yaml") if "plan" not in file.stem]
    assert {config.name for file in experiments for config in load_experiment(file)} >= {"jetson80"}


@pytest.mark.parametrize("plan", some(PLANS, 2))
def test_every_plan_of_the_studies_names_what_there_is(plan: Path) -> None:
    assert runner.steps_of(plan, STUDIES / "results", Path("runs"))


def test_a_run_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        keep(tmp_path, tmp_path)


def test_the_page_follows_from_what_is_kept_alone(done: Path, tmp_path: Path) -> None:
    """Every part of a page and every figure is made, of a template that has them all."""
    pages = [_page(done, tmp_path / name) for name in ("one", "other")]
    assert pages[0] == pages[1]
    page = pages[0]["study.md"].decode()
    assert "{{" not in page
    template = (STUDIES / "quick.md").read_text("utf-8")
    parts = (page_maker.PARTS, page_maker.PARTS_OF_SOME, page_maker.FIGURES)
    assert {kind for part in parts for kind in part} <= set(re.findall(r"\{\{ ([\w-]+)", template))
    for title in ("Time to 5 %", "T(2) / T(1)", "authors' claim", "(No other pacings are known.)"):
        assert title in page
    shown = set(re.findall(r"\]\((images/[\w.-]+)\)", page))
    assert {name for name in shown if name.endswith(".png")} <= set(pages[0])
    assert shown == set(pages[0]) - {"study.md"}


def test_a_time_on_the_page_is_that_of_the_rounds_that_are_kept(done: Path, tmp_path: Path) -> None:
    """The time is found as a reader would: the first mean of three accuracies at the target."""
    kept = read_kept(done / "results" / "quick")
    study_ = study_of_kept(kept)
    for one in kept:
        smooth = one.run.rounds["accuracy"].rolling(3).mean()
        hits = one.run.rounds["closed_s"][smooth >= 0.05 - 1e-6]
        (at_5,) = (s for s in (study_, *study_.others) if s.target.value == 0.05)
        known = at_5.run_row(one.run)["time_to_target_s"]
        assert (len(hits) == 0 and pd.isna(known)) or known == hits.iloc[0]


def test_a_part_that_no_page_has_is_refused(done: Path) -> None:
    with pytest.raises(UserError, match="a part of the page must be one of table"):
        page_maker.page_of("{{ tabel quick }}", _plan(done), done / "results", Path("images"))


def test_a_figure_shows_the_variants_that_its_line_names(done: Path) -> None:
    def shown(line: str) -> set[str]:
        files = page_maker.page_of(line, _plan(done), done / "results", Path("images"))[1]
        return set(pd.read_csv(io.BytesIO(files["study-quick-accuracy.csv"]))["label"])

    assert len(shown("{{ accuracy quick }}")) == 2
    assert shown("{{ accuracy quick: fedquad }}") == {"FedQuad"}
    assert len(shown("{{ accuracy quick: fedquad, fedlora-common }}")) == 2
    with pytest.raises(UserError, match=r"a variant that is shown must be one of .*got fedquat"):
        shown("{{ accuracy quick: fedquat }}")
    with pytest.raises(UserError, match=r"a variant that is shown must be one of none, got fedq"):
        shown("{{ menu-drawn quick: fedquad }}")
    with pytest.raises(
        UserError, match="that shows chosen variants must be one of chosen, overview, accuracy"
    ):
        shown("{{ table quick: fedquad }}")


def test_a_table_of_devices_shows_the_variants_that_its_line_names(done: Path) -> None:
    def shown(line: str) -> str:
        return page_maker.page_of(line, _plan(done), done / "results", Path())[0]

    whole, one = shown("{{ chosen quick }}"), shown("{{ chosen quick: fedquad }}")
    assert "fedlora-common" in whole
    assert "fedlora-common" not in one
    assert whole.count("| FedQuad |") == one.count("| FedQuad |") > 0


def test_the_overview_has_what_a_variant_comes_to_against_the_baseline(done: Path) -> None:
    page, _ = page_maker.page_of(
        "{{ overview quick: fedquad }}\n{{ told-apart quick }}\n",
        _plan(done), done / "results", Path(),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"a variant that is shown must be one of .*got fedquat"):
        page_maker.page_of("{{ overview quick: fedquat }}", _plan(done), done / "results", Path())
    overview, _, told_apart = page.partition("| variant | number |")
    (row,) = [line for line in overview.splitlines() if line.startswith("| quick |")]
    assert "| 90 % | FedQuad | 0 of 3 | 0 of 3 | – |" in row
    for number in ("Final accuracy", "Mean wait per round"):
        (line,) = [one for one in told_apart.splitlines() if f"| FedQuad | {number} |" in one]
        change, interval = line.split(" | ")[2:4]
        assert f"{change} {interval}" in row


def test_a_block_is_on_the_page_once_a_run_of_its_experiment_is_kept(
    done: Path, tmp_path: Path
) -> None:
    template = "before\n{{ where quick }}\ntext\n{{ end }}\nafter\n"
    for results, page in ((done, "before\ntext\nafter\n"), (tmp_path, "before\nafter\n")):
        plan = _plan(results)
        assert page_maker.page_of(template, plan, results / "results", Path())[0] == page


def test_the_page_says_that_two_seeds_tell_nothing_apart(done: Path, tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        results = folder / "results"
        return page_maker.page_of("{{ findings quick }}", _plan(folder), results, Path())[0]

    assert "compared numbers can be told apart from" in said(done)
    shutil.copytree(done / "results", tmp_path / "results")
    for file in (tmp_path / "results" / "quick").glob("*-s1.*"):
        file.unlink()
    assert said(tmp_path).startswith("With 2 seeds nothing can be told apart")
    results = tmp_path / "results"
    table, _ = page_maker.page_of("{{ told-apart quick }}", _plan(tmp_path), results, Path())
    assert "| FedQuad | Final accuracy |" in table
    assert "| – | – | unknown | 2 |" in table


@pytest.mark.parametrize(
    ("p", "says"),
    [(0.0004, ("< 0.001", "yes")), (0.0014, ("0.001", "yes")), (0.317, ("0.317", "no"))],
)
def test_no_p_value_reads_as_nothing(p: float, says: tuple[str, str]) -> None:
    named = ("FedQuad", "Final accuracy")
    assert Change(("fedquad", "final_accuracy"), named, "", "", p, "5").verdict == says


def test_the_page_says_which_runs_of_the_plan_are_missing(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    (tmp_path / "results" / "quick" / "fedquad-s1.json").unlink()
    page, _ = page_maker.page_of(
        "{{ planned quick }}", _plan(tmp_path), tmp_path / "results", Path()
    )
    assert "| FedQuad | 0, 2 | 1 |" in page


def test_an_experiment_that_no_plan_has_is_refused(done: Path) -> None:
    with pytest.raises(UserError, match="the plan has no 'quikc', but quick"):
        page_maker.page_of("{{ table quikc }}", _plan(done), done / "results", Path())


@long
def test_the_page_of_the_docs_is_what_the_kept_runs_say(tmp_path: Path) -> None:
    assert page_maker.main([str(STUDIES / "page.md"), str(tmp_path / "study.md")]) == 0
    made = (tmp_path / "study.md").read_text("utf-8")
    assert (STUDIES.parent / "docs" / "study.md").read_text("utf-8") == made, "make study-page"


def _plan(folder: Path) -> dict[str, list[runner.Step]]:
    return page_maker.plan_of(STUDIES / "quick-plan.yaml", folder / "results")


def _page(done: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    plan = str(STUDIES / "quick-plan.yaml")
    results = ["--results", str(done / "results"), "--plan", plan]
    page = [str(STUDIES / "quick.md"), str(folder / "study.md")]
    assert page_maker.main([*page, *results]) == 0
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@long
def test_the_headline_of_the_readme_is_what_the_kept_runs_say() -> None:
    readme = (STUDIES.parent / "README.md").read_text("utf-8")
    assert page_maker.HEADLINE.search(readme)
    results = STUDIES / "results"
    plan = page_maker.plan_of(STUDIES / "plan.yaml", results)
    assert page_maker.with_headline(readme, plan, results) == readme, "make study-page"


def test_the_study_meets_the_conditions_of_the_runs_that_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its boards stay as they were, whatever becomes of the catalog."""
    monkeypatch.chdir(STUDIES.parent)
    kept = json.loads((STUDIES / "results" / "jetson80" / "fedquad-s0.json").read_text("utf-8"))
    config = load_experiment(STUDIES / "jetson80.yaml")[0]
    assert build_world(config, "jetson80").conditions_hash == kept["conditions_hash"]
