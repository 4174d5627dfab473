"""Times real training steps on this machine, and writes them as a device profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from analysis.calibration.step_fit import (
    MEDIAN_TARGET,
    SEED,
    TAIL_TARGET,
    Configuration,
    Effort,
    Fit,
    NoisyMachineError,
    UnmeasuredError,
    fit_rates,
    grid,
    measured_step,
)
from devices.architectures import model_spec, plan_costs
from devices.cost.measured import MeasuredStep, steps_text
from devices.fleet import catalog
from devices.fleet.calibrated import calibrated_text
from devices.fleet.profile import ComputeBits, DeviceProfile
from devices.models.catalog import ModelSource, resolve
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.vocabulary.plan import TrainingPlan
from simulator.config.problems import UserError
from simulator.log.disk import replace_file
from simulator.workers.pool import available_cores

NUM_CLASSES = 16
WIDTHS: tuple[ComputeBits, ...] = (32, 16)


class Bench(NamedTuple):
    """A bench holds the model whose steps are timed, and how and on what they are timed."""

    source: ModelSource
    model: ModelSpec
    effort: Effort
    compute: str  # "auto", "cpu" or "cuda"
    threads: int


def open_bench(
    model: str, targets: Sequence[str], *, effort: Effort, compute: str, threads: int | None
) -> Bench:
    """Return what is measured: a model of the catalog or a directory, with LoRA on these layers.

    Raises ValueError where the model or its layers cannot be had.
    """
    source = resolve(model)
    spec = model_spec(source, targets, head=text_head(NUM_CLASSES))
    return Bench(source, spec, effort, compute, threads or available_cores())


def calibrate(output: Path, name: str, bench: Bench, *, like: str) -> list[str]:
    """Time training steps on this machine and write them as a device profile of this name.

    Watts are not measured: they are those of the device ``like``. Returns the lines to tell the
    user. Raises ValueError on a name that is none, and UserError as ``save`` does.
    """
    template = _template(name, bench, catalog.profile(like))
    steps = list(measure(name, bench, _stopwatches(bench)))
    return save(output, steps, template)


def save(output: Path, steps: Sequence[MeasuredStep], template: DeviceProfile) -> list[str]:
    """Fit the steps, write profile and table, and return the lines to tell the user.

    An operand width whose arithmetic took no time that could be told from the rest of a step has
    no rate, and is left out of the profile. Raises UserError, before anything is written, where
    the steps were timed on too noisy a machine, or no width is left.
    """
    fits, left_out = [], []
    kept = f"; {output} is kept as it was" if output.exists() else ""
    timed = {step.compute_bits for step in steps}
    for bits in (width for width in WIDTHS if width in timed):
        try:
            fits.append(fit_rates(steps, bits))
        except UnmeasuredError as error:
            left_out.append(str(error))
        except NoisyMachineError as error:
            raise UserError(f"{error}{kept}") from None
    if not fits:
        raise UserError("; ".join(left_out) + kept)
    table = output.with_suffix(".csv")
    try:
        replace_file(table, steps_text(steps))
        replace_file(output, calibrated_text(_calibrated(template, fits)))
    except OSError as error:
        raise UserError(f"the profile cannot be written to {output}: {error}") from None
    files = f"Profile: {output} (as fleet.devices.profile); measured steps: {table}"
    said = [line for fit in fits for line in _said(fit)]
    return [*said, *(f"left out of the profile: {line}" for line in left_out), files]


class StepClock(Protocol):
    """A step clock tells how long one training step takes."""

    def step_s(self, plan: TrainingPlan, length: int) -> float:
        """Return the seconds of one step of this plan on texts of ``length`` tokens."""
        ...


def _stopwatches(bench: Bench) -> dict[ComputeBits, Callable[[], StepClock]]:
    """Return the stopwatches of this machine by operand width."""
    from devices.training.stopwatch import Stopwatch, hosts

    widths: dict[int, ComputeBits] = {32: 32, 16: 16}
    return {
        widths[bits]: partial(Stopwatch, bench.source, bench.model, host, bench.threads)
        for bits, host in hosts(bench.compute).items()
    }


def measure(
    device: str, bench: Bench, clocks: Mapping[ComputeBits, Callable[[], StepClock]]
) -> Iterator[MeasuredStep]:
    """Yield a row for each configuration and operand width, timed by that width's clock.

    Repeats are interleaved, each time in another order: whatever comes and goes on the machine
    meets all configurations alike.
    """
    configurations = grid(bench.model, bench.effort)
    rng = np.random.default_rng(SEED)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console()) as progress:
        total = len(clocks) * bench.effort.num_repeats * len(configurations)
        task = progress.add_task("loading", total=total)
        for bits, clock in clocks.items():
            stopwatch = clock()
            times_s: list[list[float]] = [[] for _ in configurations]
            for repeat in range(1, bench.effort.num_repeats + 1):
                said = f"{bits} bits, pass {repeat} of {bench.effort.num_repeats}"
                progress.update(task, description=said)
                if not progress.console.is_terminal:  # a bar without a terminal shows only its end
                    progress.console.print(said)
                for k in rng.permutation(len(configurations)).tolist():
                    one = configurations[k]
                    times_s[k].append(stopwatch.step_s(one.plan, one.length))
                    progress.advance(task)
            yield from _rows(device, bench, bits, configurations, times_s)


def _rows(
    device: str,
    bench: Bench,
    bits: ComputeBits,
    configurations: Sequence[Configuration],
    times_s: Sequence[Sequence[float]],
) -> Iterator[MeasuredStep]:
    costs = plan_costs(bench.source, bench.model, 1, compute_bits=bits)
    for one, times in zip(configurations, times_s, strict=True):
        yield measured_step(device, replace(costs, sequence_length=one.length), one, times)


def _template(name: str, bench: Bench, watts: DeviceProfile) -> DeviceProfile:
    """Return the profile before its rates are measured: they are those of the device like it."""
    from devices.training.stopwatch import hosts, memory_bytes, processor

    host = hosts(bench.compute)[32]
    return replace(
        watts,
        name=name,
        title=f"{processor(host)}, {bench.threads} thread{'s' * (bench.threads > 1)}",
        tier="calibrated",
        memory_bytes=memory_bytes(host),
        source=f"power [assumed]: that of {watts.name}",
    )


def _calibrated(template: DeviceProfile, fits: Sequence[Fit]) -> DeviceProfile:
    errors = "; ".join(
        f"{fit.compute_bits} bits: median {fit.median_error:.1%}, 90th percentile "
        f"{fit.tail_error:.1%} off on {fit.num_held_out} held-out configurations"
        for fit in fits
    )
    return replace(
        template,
        confidence="high" if all(fit.is_good for fit in fits) else "low",
        source=f"rates [measured]: fedclock calibrate, {errors}; {template.source}",
        measured={fit.compute_bits: fit.rates for fit in fits},
    )


def _said(fit: Fit) -> list[str]:
    rates = fit.rates
    bad = (
        f"; more than the {MEDIAN_TARGET:.0%} and {TAIL_TARGET:.0%} that a fit should reach: its "
        f"confidence is low, and the table itself may serve better (cost.kind: measured)"
    )
    return [
        f"{fit.compute_bits} bits: {rates.flops_per_s / 1e9:.1f} GFLOP/s, memory "
        f"{rates.memory_bytes_per_s / 1e9:.1f} GB/s, overhead {rates.overhead_s * 1e3:.1f} ms",
        *(
            f"  {part}: at least this rate; it took no time that could be told from the rest"
            for part in fit.bounded
        ),
        f"  held out ({fit.num_held_out}): median error {fit.median_error:.1%}, 90th percentile "
        f"{fit.tail_error:.1%}; repeats differ by {fit.spread:.1%}{'' if fit.is_good else bad}",
    ]
