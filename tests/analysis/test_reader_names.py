"""Readers see a strategy's name where its label is its kind, alike in tables and figures."""

from __future__ import annotations

from dataclasses import replace

from algorithms.registry import STRATEGIES
from analysis.figures import FIGURES
from analysis.metrics.study import study_of
from analysis.report.data import ReportData
from analysis.report.table import study_table
from analysis.runs.names import reader_names, with_names
from tests.analysis.test_run_metrics import make_run


def untitled(*pairs: tuple[str, str]) -> dict[str, str]:
    """Return the names for readers of variants whose config gives no title."""
    return reader_names((variant, kind, None) for variant, kind in pairs)


def test_a_label_that_is_the_kind_has_the_name_of_the_strategy() -> None:
    pairs = [("fedlora", "fedlora"), ("haflq rank=8", "haflq"), ("zeropad", "zeropad")]
    assert list(untitled(*pairs).values()) == ["FedLoRA", "HAFLQ rank=8", "Zero padding"]
    assert not [name for name in untitled(*((k, k) for k in STRATEGIES)).values() if ":" in name]


def test_labels_of_ones_own_and_own_schedulers_stand_as_they_are() -> None:
    pairs = [("ours", "fedquad"), ("haflq", "fedquad"), ("Half", "Half"), ("fedquad2", "fedquad")]
    assert all(variant == name for variant, name in untitled(*pairs).items())


def test_names_of_two_variants_never_fall_together() -> None:
    names = untitled(("FedQuad", "haflq"), ("fedquad", "fedquad"))
    assert names == {"FedQuad": "FedQuad", "fedquad": "FedQuad (fedquad)"}
    pairs = [("FedQuad", "haflq"), ("fedquad", "fedquad"), ("FedQuad (fedquad)", "haflq")]
    assert len(set(untitled(*pairs).values())) == 3


def test_a_title_of_the_config_stands_in_place_of_the_label() -> None:
    variants = [
        ("q rank=4", "fedquad", "FedQuad (ours)"),
        ("q rank=8", "fedquad", "FedQuad (ours)"),
    ]
    names = reader_names([*variants, ("haflq", "haflq", None)])
    assert list(names.values()) == ["FedQuad (ours) rank=4", "FedQuad (ours) rank=8", "HAFLQ"]
    alike = reader_names([("one", "haflq", "Same"), ("two", "haflq", "Same")])
    assert list(alike.values()) == ["Same (one)", "Same (two)"]


def test_table_and_figure_agree_on_the_name() -> None:
    found = study_of([make_run("fedlora", [0.1, 0.5, 0.7]), make_run("fedquad", [0.1, 0.6, 0.7])])
    table = study_table(found)
    assert table.variants == ("FedLoRA", "FedQuad")
    assert "baseline FedLoRA" in table.note
    bars = next(spec for spec in FIGURES if spec.name == "time-to-target")
    shown = with_names(bars.frame(found), found.names)
    assert list(shown["label"].unique()) == list(table.variants)


def test_the_baseline_may_be_given_by_label_or_by_name() -> None:
    runs = [make_run("fedlora", [0.1, 0.5, 0.7]), make_run("haflq", [0.1, 0.6, 0.7])]
    assert {study_of(runs, baseline=name).baseline for name in ("haflq", "HAFLQ")} == {"haflq"}


def test_a_report_without_a_title_is_headed_by_the_name_of_the_experiment() -> None:
    runs = [make_run(label, [0.1, 0.5, 0.7]) for label in ("fedlora", "haflq")]
    named = [replace(run, config={**run.config, "name": "my-paper"}) for run in runs]
    assert ReportData(study_of(named), []).title == "my-paper"
    other = [named[0], replace(named[1], config={**named[1].config, "name": "another"})]
    assert ReportData(study_of(other), []).title == "FedLoRA, HAFLQ"
