"""Writes docs/study.md and its figures from the kept runs: no number in it is written by hand.

    python -m studies.page studies/page.md docs/study.md

The template is Markdown with lines such as ``{{ table jetson80 }}``, each of which stands for what
``PARTS`` or ``FIGURES`` make of one experiment of the plan. A figure, or a table of
``PARTS_OF_SOME``, may name the variants that it shows: ``{{ accuracy jetson80: fedquad, haflq }}``.
What stands between ``{{ where jetson80 }}`` and ``{{ end }}`` is on the page once a run of that
experiment is kept. A figure lies beside the page, with the CSV that it is drawn from.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.figures import performance_profile, render, style
from analysis.metrics.paired import CONFIDENCE
from analysis.runs.names import with_names
from simulator.config.problems import UserError
from studies import figures as drawn
from studies.frames import (
    blocks_frame,
    chosen_frame,
    compared_frame,
    curve_frame,
    menu_frame,
    of_variants,
    paid_frame,
    speed_up_frame,
)
from studies.run import Step, steps_of
from studies.source import Source
from studies.tables import PARTS, PARTS_OF_SOME, headline

HERE = Path(__file__).parent
PLACE = re.compile(r"^\{\{ *([\w-]+) +([\w-]+)(?:: *([\w, -]+?))? *\}\}$", re.MULTILINE)
WHERE = re.compile(
    r"^\{\{ *where +([\w-]+) *\}\}\n(.*?)^\{\{ *end *\}\}\n", re.MULTILINE | re.DOTALL
)
HEADLINE = re.compile(r"(<!-- study (\w+) -->\n).*?(<!-- end of study -->)", re.DOTALL)
FIGURES: Mapping[str, tuple[str, Callable[[Source], pd.DataFrame], drawn.Draw]] = {
    "accuracy": (
        "The test metric against simulated time: mean and range of the seeds.",
        curve_frame,
        drawn.learning,
    ),
    "speed-up": (
        "How many times sooner than the baseline each accuracy is reached, by the mean of three "
        f"evaluations; from three seeds on with a {100 * CONFIDENCE:.0f} % interval. A curve ends "
        "where a seed fails.",
        speed_up_frame,
        drawn.speed_ups,
    ),
    "performance-profile": (
        "Share of the targets of the config, over all seeds, that a variant reaches within so many "
        "times the time of the fastest one; in brackets the mean over the axis, AlgoPerf's score.",
        lambda source: performance_profile.frame(source.study),
        performance_profile.draw,
    ),
    "coverage": (
        "Share of the merged examples that trained each block, from the input (1) to the output.",
        blocks_frame,
        drawn.coverage,
    ),
    "decomposed": (
        "What a target takes beside the baseline: seconds a round, and rounds. A mark is a target, "
        "the mean over the seeds at which both reached it.",
        compared_frame,
        drawn.decomposition,
    ),
    "menu-drawn": (
        "Peak memory and seconds of one step, by depth and by what becomes of the activations.",
        menu_frame,
        drawn.menu,
    ),
    "bound-drawn": (
        "Seconds of a step at a depth over those at depth 1, without packing, the mean over the "
        "kinds of device. A mark is the mean depth of a variant's plans.",
        paid_frame,
        drawn.bound,
    ),
    "devices": (
        "How long each kind of device is at work in a round, and how long it waits for the others.",
        chosen_frame,
        drawn.devices,
    ),
}
"""The figures that a line of the template may ask for."""


def plan_of(file: Path, results: Path) -> dict[str, list[Step]]:
    """Return the steps of a plan's experiments by name, in its order."""
    plan: dict[str, list[Step]] = {}
    for step in steps_of(file, results, Path("runs")):
        plan.setdefault(step.experiment, []).append(step)
    return plan


def page_of(
    template: str, plan: Mapping[str, Sequence[Step]], results: Path, folder: Path
) -> tuple[str, dict[str, bytes]]:
    """Return the page, and by name the files that it shows, which lie in ``folder`` beside it.

    Raises UserError for a line that asks for what there is not.
    """
    sources: dict[str, Source] = {}
    files: dict[str, bytes] = {}

    def source_of(name: str) -> Source:
        return sources.setdefault(name, Source(name, results, plan))

    def block(found: re.Match[str]) -> str:
        name, text = found.groups()
        return text if source_of(name).has_runs else ""

    def part(found: re.Match[str]) -> str:
        kind, name, chosen = found.groups()
        source, labels = source_of(name), re.split(r", *", chosen) if chosen else []
        if kind in PARTS and not labels:
            return PARTS[kind](source).rstrip("\n")
        if kind in PARTS_OF_SOME:
            return PARTS_OF_SOME[kind](source, labels).rstrip("\n")
        if kind in FIGURES:
            caption, frame_of, draw = FIGURES[kind]
            frame = of_variants(frame_of(source), labels)
            if frame.empty:
                return f"({caption} Nothing is known of it yet.)"
            shown = render(with_names(frame, source.study.names), draw, style.IEEE)
            stem = f"study-{name}-{kind}"
            files.update({f"{stem}.{suffix}": shown[suffix] for suffix in ("png", "csv")})
            place = f"{folder.name}/{stem}"
            return f"![{caption}]({place}.png)\n\n{caption} [The numbers]({place}.csv)."
        known = ", ".join(
            [*PARTS_OF_SOME, *FIGURES] if labels else [*PARTS, *PARTS_OF_SOME, *FIGURES]
        )
        which = "that shows chosen variants " if labels else ""
        raise UserError(f"a part of the page {which}must be one of {known}, got {kind!r}")

    return PLACE.sub(part, WHERE.sub(block, template)), files


def with_headline(readme: str, plan: Mapping[str, Sequence[Step]], results: Path) -> str:
    """Return a README with the table of the study that it names, between its two comments."""

    def table_of(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}{headline(Source(name, results, plan))}{end}"

    return HEADLINE.sub(table_of, readme)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("template", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--plan", type=Path, default=HERE / "plan.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, help="a page whose headline follows too")
    given = parser.parse_args(arguments)
    folder = given.page.parent / "images"
    try:
        plan = plan_of(given.plan, given.results)
        page, files = page_of(given.template.read_text("utf-8"), plan, given.results, folder)
        if given.readme:
            readme = with_headline(given.readme.read_text("utf-8"), plan, given.results)
            given.readme.write_text(readme, encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    given.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
