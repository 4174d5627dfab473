"""``fedclock calibrate``: times real training steps here, and writes a device profile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from analysis.step_fit import (
    FULL,
    MEDIAN_TARGET,
    QUICK,
    SEED,
    TAIL_TARGET,
    Configuration,
    Effort,
    Fit,
    NoisyMachineError,
    fit_rates,
    grid,
    measured_step,
)
from devices import catalog
from devices.calibrated import calibrated_text
from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import MeasuredStep, steps_text
from devices.model_catalog import ModelSource, resolve
from devices.model_spec import ModelSpec
from devices.profile import ComputeBits, DeviceProfile
from simulator.disk import write_atomically
from simulator.problems import UserError

NUM_CLASSES = 16
WIDTHS: tuple[ComputeBits, ...] = (32, 16)


class Bench(NamedTuple):
    """What is measured on what."""

    source: ModelSource
    model: ModelSpec
    effort: Effort
    compute: str
    threads: int


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="profile to write, a .toml file")],
    name: Annotated[str, typer.Option(help="what the device shall be called")],
    quick: Annotated[bool, typer.Option("--quick", help="fewer and smaller steps")] = False,
    model: Annotated[
        str, typer.Option(help="what is trained; needs query and value")
    ] = "minilm-l6",
    compute: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="one a core unless given")] = None,
    like: Annotated[
        str, typer.Option(help="device whose watts are taken, for they are not measured")
    ] = "laptop-core-i5-1135g7",
) -> None:
    """Turn this machine into a device profile, by timing real training steps on it."""
    if output.suffix != ".toml":
        raise UserError(f"--output must be a .toml file, got {output}")
    try:
        watts = catalog.profile(like)
        source = resolve(model)
        spec = ModelSpec.from_config(model, source.config, ("query", "value"), NUM_CLASSES)
        spec = replace(spec, attention="eager")
        bench = Bench(source, spec, QUICK if quick else FULL, compute, threads or _cores())
        template = _template(name, bench, watts)
        steps = list(_measure(name, bench))
    except ValueError as error:
        raise UserError(str(error)) from None
    for line in save(output, steps, template):
        print(line)


def save(output: Path, steps: Sequence[MeasuredStep], template: DeviceProfile) -> list[str]:
    """Fit the steps; write the profile, and the table beside it. What there is to say about it.

    Raises UserError, before anything is written, where the steps were timed on too noisy a machine.
    """
    try:
        fits = [fit_rates(steps, bits) for bits in WIDTHS if _has(steps, bits)]
    except NoisyMachineError as error:
        kept = f"; {output} is kept as it was" if output.exists() else ""
        raise UserError(f"{error}{kept}") from None
    table = output.with_suffix(".csv")
    try:
        write_atomically(table, steps_text(steps))
        write_atomically(output, calibrated_text(_calibrated(template, fits)))
    except OSError as error:
        raise UserError(f"the profile cannot be written to {output}: {error}") from None
    files = f"Profile: {output} (as fleet.devices.profile); measured steps: {table}"
    return [line for fit in fits for line in _said(fit)] + [files]


def _measure(device: str, bench: Bench) -> Iterator[MeasuredStep]:
    """A row for each configuration and operand width.

    Repeats are interleaved, each time in another order: whatever comes and goes on the machine
    meets all configurations alike.
    """
    from devices.training.stopwatch import Stopwatch, hosts

    configurations = grid(bench.model, bench.effort)
    found = hosts(bench.compute)
    rng = np.random.default_rng(SEED)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console()) as progress:
        total = len(found) * bench.effort.num_repeats * len(configurations)
        task = progress.add_task("loading", total=total)
        for bits, host in found.items():
            stopwatch = Stopwatch(bench.source, bench.model, host, bench.threads)
            times_s: list[list[float]] = [[] for _ in configurations]
            for repeat in range(1, bench.effort.num_repeats + 1):
                said = f"{bits} bits, pass {repeat} of {bench.effort.num_repeats}"
                progress.update(task, description=said)
                if not progress.console.is_terminal:  # where the bar shows at its end alone
                    progress.console.print(said)
                for k in rng.permutation(len(configurations)).tolist():
                    one = configurations[k]
                    times_s[k].append(stopwatch.step_s(one.plan, one.length))
                    progress.advance(task)
            yield from _rows(device, bench.model, 16 if bits == 16 else 32, configurations, times_s)


def _rows(
    device: str,
    model: ModelSpec,
    bits: ComputeBits,
    configurations: Sequence[Configuration],
    times_s: Sequence[Sequence[float]],
) -> Iterator[MeasuredStep]:
    for one, times in zip(configurations, times_s, strict=True):
        yield measured_step(device, ClosedFormCost(model, one.length, bits), one, times)


def _template(name: str, bench: Bench, watts: DeviceProfile) -> DeviceProfile:
    """The profile but for what is measured, which stands at that of the device like it."""
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
        f"  held out ({fit.num_held_out}): median error {fit.median_error:.1%}, 90th percentile "
        f"{fit.tail_error:.1%}; repeats differ by {fit.spread:.1%}{'' if fit.is_good else bad}",
    ]


def _has(steps: Sequence[MeasuredStep], bits: ComputeBits) -> bool:
    return any(step.compute_bits == bits for step in steps)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
