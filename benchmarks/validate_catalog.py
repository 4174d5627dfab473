"""Hold the catalog of devices against what others measured; write the table into docs/costs.md.

make validate-catalog, or python -m benchmarks.validate_catalog (seconds)

The facts stand in devices/fleet/measurements.toml. Nothing is judged by a number that was fitted to
it: where the share of the peak that a class of hardware sustains follows from several measurements,
each of them is judged by the share that follows from the others.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.documentation import put
from devices.architectures import model_spec
from devices.cost.closed_form import ClosedFormCost, Demand, step_time
from devices.cost.optimizers import OptimizerCost
from devices.fleet.catalog import CATALOG, modes_of, profile
from devices.fleet.profile import Activity, DeviceProfile
from devices.models.catalog import resolve
from devices.models.families import CLOSED_FORMS, Sizes
from devices.models.heads import text_head, token_head
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import TermGrid, TrainingPlan, WeightFormat

MEASUREMENTS = CATALOG.with_name("measurements.toml")
MARK = "validate-catalog"
TARGETS = {"median": 1.3, "worst": 2.0}
"""The most by which simulated and measured may differ, as a factor, over what can be compared."""
SPEEDS = ("tokens/s", "GFLOP/s")
NUM_CLASSES = 20
"""Outputs of a classifier where no source says; they change no cost that can be seen."""
TESTBED = ("jetson-tx2-maxn", "jetson-xavier-nx-20w", "jetson-agx-xavier-maxn")
TESTBED_MODEL = "roberta-large"
FORWARD_SHARE = 1 / 3
"""Share of a step's fixed time that a forward pass alone takes: one of three passes."""


@dataclass(frozen=True)
class Measurement:
    """A measurement is a fact that others published, and what of the catalog it is compared with.

    It is not compared where ``why`` says why.
    """

    name: str
    device: str
    work: str
    measured: tuple[float, ...]
    unit: str
    source: str
    note: str = ""
    why: str = ""
    sets: bool = False  # True if the share of its class was fitted to it
    profile: str = ""
    peak_gflops: float | None = None  # in place of that of the profile
    peak_gb_per_s: float | None = None
    power: Activity | None = None
    model: str = ""
    trains: Literal["lora", "full", "nothing"] = "lora"
    targets: tuple[str, ...] = ()  # layers with LoRA; all linear layers if empty
    rank: int = 1
    batch: int = 1
    micro_batch: int | None = None
    tokens: int = 0
    depths: tuple[int, ...] = ()
    weights: WeightFormat = "fp32"

    @property
    def is_compared(self) -> bool:
        """Return True if something of the catalog stands for what was measured."""
        return not self.why


class Judgement(NamedTuple):
    """A judgement is one measurement beside what the catalog gives."""

    measurement: Measurement
    simulated: Sequence[float]
    factors: Sequence[float]  # simulated over measured time, bytes or watts
    by: str  # in words, what the measurement is judged by

    @property
    def off_by(self) -> float:
        """Return the largest factor, up or down, between simulated and measured numbers."""
        return max(max(factor, 1 / factor) for factor in self.factors)


@cache
def parsed(path: Path) -> Mapping[str, Any]:
    """Return the content of a TOML file."""
    return tomllib.loads(path.read_text("utf-8"))


def measurements() -> list[Measurement]:
    """Return every measurement of the file. Raises TypeError for a key that none has."""
    found = [
        Measurement(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()})
        for one in parsed(MEASUREMENTS)["measurement"]
    ]
    if unknown := {one.source for one in found} - set(parsed(MEASUREMENTS)["source"]):
        raise ValueError(f"{MEASUREMENTS}: a source must be one of [source], got {unknown}")
    return found


def class_of(name: str) -> str:
    """Return the class of hardware and stack that a profile of the catalog belongs to."""
    devices = parsed(CATALOG)["device"]
    stem, is_plain, _ = name.partition("-plain")
    device = max((one for one in devices if stem.startswith(one["name"])), key=_name_length)
    return str(device["plain" if is_plain else "class"])


def _name_length(device: Mapping[str, Any]) -> int:
    return len(device["name"])


def share_of(name: str) -> float:
    """Return the share of the 32-bit peak that the catalog has a class sustain."""
    return float(parsed(CATALOG)["class"][name]["training_efficiency"]["32"])


def fitted_share(rows: Sequence[Measurement]) -> float:
    """Return the share at which simulated over measured time of these rows has the mean 1.

    The mean is geometric, first over the numbers of a row and then over rows.
    """
    low, high = 1e-4, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        logs = [np.log(factors_of(row, middle)).mean() for row in rows]
        low, high = (middle, high) if np.mean(logs) > 0 else (low, middle)
    return math.sqrt(low * high)


def judge(one: Measurement, every: Sequence[Measurement]) -> Judgement | None:
    """Return a measurement beside the catalog; None where there is nothing to judge it by."""
    by, share = "the catalog", None
    if one.sets:
        name = class_of(one.profile)
        others = [k for k in every if k.sets and k != one and class_of(k.profile) == name]
        if not others:
            return None
        share = fitted_share(others)
        by = f"{100 * share:.2g} %, of {', '.join(k.name for k in others)}"
    return Judgement(one, simulated(one, profile_of(one, share)), factors_of(one, share), by)


def factors_of(one: Measurement, share: float | None) -> list[float]:
    """Return simulated over measured time (bytes, watts) of each number."""
    found = np.array(simulated(one, profile_of(one, share))) / np.array(one.measured)
    factors: list[float] = (1 / found if one.unit in SPEEDS else found).tolist()
    return factors


def profile_of(one: Measurement, share: float | None) -> DeviceProfile:
    """Return the profile of a measurement, at another share of the peak where one is given."""
    found = profile(one.profile)
    name = class_of(one.profile)
    scale, bandwidth = (share or share_of(name)) / share_of(name), 1.0
    if one.peak_gflops and one.peak_gb_per_s:
        devices = parsed(CATALOG)["device"]
        stem = one.profile.partition("-plain")[0]
        device = next(k for k in devices if k["name"] == stem)
        scale *= one.peak_gflops / device["peak_gflops"]["32"]
        bandwidth = one.peak_gb_per_s / device["peak_gb_per_s"]
    return replace(
        found,
        flops_per_s={bits: scale * rate for bits, rate in found.flops_per_s.items()},
        memory_bytes_per_s=bandwidth * found.memory_bytes_per_s,
    )


def simulated(one: Measurement, device: DeviceProfile) -> list[float]:
    """Return what the catalog gives, in the unit and for each number of a measurement."""
    if one.power:
        found = [device.power_w[one.power]]
    elif one.unit == "GFLOP/s":
        found = [device.flops_per_s[32] / 1e9]
    elif one.unit == "MB":
        plan, cost = _plan(one, one.depths[0])
        found = [cost.cost(plan, device).upload_bytes / 1e6]
    else:
        found = [_step_s(one, device, depth) for depth in one.depths]
        if one.unit == "tokens/s":
            found = [one.batch * one.tokens / step_s for step_s in found]
    return found * (len(one.measured) // len(found))


def _step_s(one: Measurement, device: DeviceProfile, depth: int) -> float:
    """Return the seconds of a step, or of a forward pass where nothing is trained."""
    plan, cost = _plan(one, depth)
    if one.trains == "full":
        return sum(step_time(_with_all_weights(cost, plan), device, cost.compute_bits))
    step = cost.cost(plan, device).step
    if one.trains == "nothing":
        return step.forward_s + FORWARD_SHARE * step.overhead_s
    return sum(step)


def _plan(one: Measurement, depth: int) -> tuple[TrainingPlan, ClosedFormCost]:
    config = parsed(MEASUREMENTS)["model"][one.model]
    layers = CLOSED_FORMS[config["model_type"]](Sizes(config))["linears"]
    targets = one.targets or tuple(layer.name for layer in layers)
    is_decoder = config["model_type"] in ("llama", "qwen2", "qwen3")
    head = token_head(config) if is_decoder else text_head(NUM_CLASSES)
    model = ModelSpec.from_config(one.model, config, targets, head)
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(model.grid_shape(one.rank), depth),
        weight_formats=(one.weights,) * model.num_blocks,
        activation_bits=(32,) * model.num_blocks,
        local_steps=1,
        batch_size=one.batch,
        micro_batch=one.micro_batch,
    )
    return plan, ClosedFormCost(model, one.tokens)


def _with_all_weights(cost: ClosedFormCost, plan: TrainingPlan) -> Demand:
    """Return the demand of training all weights of the blocks in which a plan holds a term each.

    Beside what LoRA computes, each matrix has a gradient of its own, and plain SGD steps on it.
    """
    demand, tokens = cost.demand(plan), plan.batch_size * cost.sequence_length
    layers = cost.model.linears
    weights = plan.depth * sum(layer.num_weights for layer in layers)
    rows = plan.depth * sum(layer.in_features + layer.out_features for layer in layers)
    moved = FP32_BYTES * (tokens * rows + weights)
    accesses = OptimizerCost("sgd").accesses * weights
    return demand._replace(
        backward_flops=demand.backward_flops + 2 * tokens * weights,
        traffic=demand.traffic._replace(
            backward=demand.traffic.backward + moved,
            optimizer=demand.traffic.optimizer + FP32_BYTES * accesses,
        ),
    )


def written() -> str:
    """Return what goes into the documentation."""
    every = measurements()
    judged = [judge(one, every) for one in every if one.is_compared]
    found = [one for one in judged if one]
    off = {one.measurement.name: one.off_by for one in found}
    reached = {"median": float(np.median([*off.values()])), "worst": max(off.values())}
    verdict = "; ".join(
        f"{name} {reached[name]:.2f}, target {most:g}, "
        + ("met" if reached[name] <= most else "**missed**")
        for name, most in TARGETS.items()
    )
    beyond = [name for name, factor in off.items() if factor > TARGETS["worst"]]
    lines = [
        f"Of {len(every)} measurements {len(found)} are compared. The factor between simulated and "
        f"measured, the largest of each row, up or down: {verdict}"
        + (f" ({', '.join(beyond)})." if beyond else "."),
        "",
        "| measurement | device | work | measured | simulated | times | judged by |",
        "|---|---|---|---|---|---|---|",
        *map(_row, found),
        "",
        "| class | share in the catalog | share that its measurements give |",
        "|---|---|---|",
        *(f"| {n} | {_percent(share_of(n))} | {_percent(s)} |" for n, s in shares(every).items()),
        "",
        "Not compared:",
        "",
        *(_not_compared(one) for one in every if one.name not in off),
        "",
        spread(),
        "",
        "Sources:",
        "",
        *(f"* {name}: {text}." for name, text in parsed(MEASUREMENTS)["source"].items()),
    ]
    return "\n".join(lines)


def shares(every: Sequence[Measurement]) -> dict[str, float]:
    """Return by class the share of the peak that all of its measurements give."""
    setting = [one for one in every if one.sets]
    names = dict.fromkeys(class_of(one.profile) for one in setting)
    return {n: fitted_share([k for k in setting if class_of(k.profile) == n]) for n in names}


def spread() -> str:
    """Return how long one step takes on each board of a Jetson testbed in each power mode."""
    source = resolve(TESTBED_MODEL, sizes_only=True)
    cost = ClosedFormCost(
        model_spec(source, ("query", "value"), head=text_head(NUM_CLASSES)), sequence_length=256
    )
    blocks = cost.model.num_blocks
    plan = TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(cost.model.grid_shape(8), blocks),
        weight_formats=("fp32",) * blocks,
        activation_bits=(32,) * blocks,
        local_steps=1,
        batch_size=16,
    )
    names = [mode for board in TESTBED for mode in modes_of(board)]
    step_s = {name: cost.cost(plan, profile(name)).train_s for name in names}
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in step_s.items())
    factor = max(step_s.values()) / min(step_s.values())
    return (
        f"A step of {TESTBED_MODEL} on 16 x 256 tokens, all blocks at 32 bits, in seconds: {listed}"
        f"; the slowest takes {factor:.1f} times as long as the fastest."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _row(found: Judgement) -> str:
    one, factors = found.measurement, found.factors
    times = f"{math.exp(np.log(factors).mean()):.2f}"
    if len(factors) > 1:
        times += f" ({min(factors):.2f} to {max(factors):.2f})"
    work = f"{one.work} [{one.source}]" + (f"; {one.note}" if one.note else "")
    ends = [_ends(numbers, one.unit) for numbers in (one.measured, found.simulated)]
    return f"| {one.name} | {one.device} | {work} | {ends[0]} | {ends[1]} | {times} | {found.by} |"


def _not_compared(one: Measurement) -> str:
    why = one.why or f"alone sets the share of class {class_of(one.profile)}"
    numbers = _ends(one.measured, one.unit)
    return f"* {one.name}, {one.device}: {one.work}, {numbers}: {why} [{one.source}]."


def _ends(numbers: Sequence[float], unit: str) -> str:
    low, high = (f"{end:.3g}" for end in (min(numbers), max(numbers)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


if __name__ == "__main__":
    put(written(), MARK)
