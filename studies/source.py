"""Describes an experiment of a study: what its plan asks for, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from analysis.metrics.study import Study
from simulator.config.experiment import load_experiment
from simulator.config.problems import UserError
from simulator.config.schema import RunConfig
from simulator.world.build import World, build_world
from studies.kept import KeptRun, read_kept, study_of_kept
from studies.run import Step


@dataclass(frozen=True)
class Source:
    """A source is one experiment of the plan: its steps and what is kept of them."""

    name: str
    results: Path
    plan: Mapping[str, Sequence[Step]]  # the steps of every experiment, by name

    @property
    def steps(self) -> Sequence[Step]:
        """Return the steps of the experiment. Raises UserError where the plan does not name it."""
        if self.name not in self.plan:
            raise UserError(f"the plan has no {self.name!r}, but " + ", ".join(self.plan))
        return self.plan[self.name]

    @property
    def has_runs(self) -> bool:
        """Return True once a run of the experiment is kept."""
        return any(step.is_kept for step in self.steps)

    def beside(self, prefix: str) -> list[Source]:
        """Return the experiments of the plan whose names begin like this."""
        names = [name for name in self.plan if name.startswith(prefix)]
        return [replace(self, name=name) for name in names]

    @cached_property
    def configs(self) -> list[RunConfig]:
        """Return the configs of the experiment's strategies, as the plan has them."""
        run = self.steps[0].run
        return load_experiment(run.file, run.overrides)

    @cached_property
    def kept(self) -> list[KeptRun]:
        """Return the kept runs, under today's titles. Raises UserError where there are none."""
        if not self.has_runs:
            raise UserError(f"no run of {self.name} is kept in {self.results}: make study")
        kept = read_kept(self.results / self.name)
        titles = {one.label: one.strategy_title for one in self.configs}
        return [_titled(one, titles.get(one.run.label)) for one in kept]

    @cached_property
    def study(self) -> Study:
        """Return the study of the kept runs."""
        return study_of_kept(self.kept)

    @cached_property
    def config(self) -> RunConfig:
        """Return the config of the experiment's first strategy."""
        return self.configs[0]

    @cached_property
    def world(self) -> World:
        """Return the devices and costs of the experiment at the first seed of the plan."""
        return build_world(self.config, str(self.steps[0].run.file))

    def of_variant(self, variant: str) -> list[KeptRun]:
        """Return the kept runs of one variant."""
        return [one for one in self.kept if one.run.label == variant]


def _titled(kept: KeptRun, title: str | None) -> KeptRun:
    config = {**kept.run.config, "strategy_title": title}
    return replace(kept, run=replace(kept.run, config=config))
