"""Hold the closed forms of the costs against real training steps; write table and figure.

python benchmarks/validate_costs.py            (from the root of the project; some minutes)
python benchmarks/validate_costs.py traced     (the families without closed forms alone)

Small random models of all families take real steps, with LoRA on different layers at different
depths. The tables go into docs/costs.md, each between its two marks, and the figure beside them.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis.figures import colors, style
from benchmarks.documentation import ROOT, put
from devices.architectures import plan_costs
from devices.cost.blocks import BatchShape, block_terms
from devices.cost.flops import backward_flops, forward_flops, recomputed_flops
from devices.cost.memory import step_memory
from devices.models.spec import Attention
from devices.training.activations import RoundingNoise, packed_activations
from devices.vocabulary.plan import ACTIVATION_BITS, TermGrid
from tests.devices.cost.specs import LINEARS, TRACED_LINEARS, attentions
from tests.devices.cost.test_saved_tensors import closed_form as saved_form
from tests.devices.cost.test_traffic import top_block
from tests.devices.cost.test_training_agreement import plan_of
from tests.devices.cost.torch_measures import (
    RANK,
    Measured,
    Shape,
    config_of,
    load,
    saved_bytes,
    source_of,
    step_flops,
)
from tests.devices.cost.traffic_measures import top_block_traffic
from tests.devices.cost.training_measures import CPU, measure_step, parts_of

SHORT = {"bert": LINEARS["bert"], "llama": LINEARS["llama"], "gpt2": TRACED_LINEARS["gpt2"]}
"""One family of each kind of block."""
FIGURE = ROOT / "docs" / "images" / "costs-validation.png"

TINY = Shape(num_blocks=3, hidden=32, num_heads=4, num_kv_heads=2, ffn=64)
# The feed-forward parts are four, two and less than two times the width. The last shape is as wide
# as MiniLM.
SHAPES = (
    (Shape(3, 64, 4, 2, 256), 4, 40),
    (Shape(3, 128, 4, 2, 256), 4, 128),
    (Shape(2, 96, 6, 3, 160), 3, 80),
    (Shape(2, 384, 12, 4, 1536), 8, 64),
)
COLORS = {32: colors.BLACK, 8: colors.BLUE, 4: colors.ORANGE, 0: colors.GREEN}
NAMES = {32: "as computed", 8: "8 bits", 4: "4 bits", 0: "computed again"}


class Case(NamedTuple):
    """A case is one number of the closed forms beside the one that was measured."""

    quantity: str
    charged: int
    measured: int
    bits: int = 32

    @property
    def deviation(self) -> float:
        """Return the closed form over the measured number, less 1."""
        return self.charged / self.measured - 1 if self.measured else float(self.charged != 0)


def target_sets(family: str) -> list[tuple[str, ...]]:
    """Return sets of adapted layers: all, the first and third, attention's four, and each alone."""
    names = LINEARS[family]
    return [names, (names[0], names[2]), names[:4], *[(name,) for name in names]]


def kinds() -> Iterator[tuple[str, Attention]]:
    """Yield every family with every attention that it has."""
    for family in LINEARS:
        for attention in attentions(family):
            yield family, attention


def models(shape: Shape, dtype: torch.dtype = torch.float32) -> Iterator[Measured]:
    """Yield every family, attention and set of adapted layers."""
    for family, attention in kinds():
        for targets in target_sets(family):
            yield load(family, shape, targets, attention=attention, dtype=dtype)


def saved_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Yield the saved bytes of each block, at each depth, padded and not."""
    bits = 16 if dtype == torch.bfloat16 else 32
    for measured in models(TINY, dtype):
        for depth, is_padded in itertools.product(range(1, 4), (False, True)):
            batch = BatchShape(2, 12, is_padded, bits)
            measured.train_top(depth)
            found, form = saved_bytes(measured, batch), saved_form(measured.spec, depth, batch)
            for block in range(TINY.num_blocks - depth, TINY.num_blocks):
                name = f"saved by a block, computed in {bits} bits"
                yield Case(name, form.get(block, 0), found.get(block, 0))


def flop_cases() -> Iterator[Case]:
    """Yield the FLOPs forward and backward at each depth, with and without recomputation."""
    batch = BatchShape(2, 12, is_padded=False, bits=32)
    for measured in models(TINY):
        spec = measured.spec
        for depth, bits in itertools.product(range(4), (32, 0)):
            measured.train_top(depth)
            blocks = block_terms(spec, TermGrid.top_blocks(spec.grid_shape(RANK), depth))
            planned = (bits,) * TINY.num_blocks
            with packed_activations(parts_of(measured), planned, RoundingNoise(0, CPU.device)):
                found = step_flops(measured, batch)
            again = recomputed_flops(spec, blocks, planned, batch)
            yield Case("FLOPs, forward", forward_flops(spec, blocks, batch), found.forward)
            backward = backward_flops(spec, blocks, batch) + again
            yield Case("FLOPs, backward", backward, found.backward)


def memory_cases() -> Iterator[Case]:
    """Yield the bytes that a step holds between its passes, and its peak, without the weights."""
    for shape, size, length in SHAPES:
        batch = BatchShape(size, length, is_padded=True, bits=32)
        for family, attention in kinds():
            for targets in [*target_sets(family)[:2], (LINEARS[family][-1],)]:
                measured = load(family, shape, targets, attention=attention)
                for depth, bits in itertools.product((1, shape.num_blocks), ACTIVATION_BITS):
                    measured.train_top(depth)
                    planned = (bits,) * shape.num_blocks
                    memory = step_memory(
                        measured.spec, plan_of(measured.spec, depth, planned), batch
                    )
                    found = measure_step(measured, planned, batch)
                    held = memory.activations + memory.head
                    yield Case("held between the passes", held, found.after_forward, bits)
                    yield Case("peak of a step", held + memory.transient, found.peak, bits)


def traffic_cases() -> Iterator[Case]:
    """Yield the traffic of the last block, trained alone and above another."""
    for shape, size, length in SHAPES[1:]:
        for measured in models(shape._replace(num_blocks=2)):
            for depth, is_padded in itertools.product((1, 2), (False, True)):
                batch = BatchShape(size, length, is_padded, bits=32)
                found = top_block_traffic(measured, batch, depth=depth)
                form = top_block(measured.spec, depth, batch)
                yield Case("bytes moved, forward", form.forward, found.forward)
                yield Case("bytes moved, backward", form.backward, found.backward)


def traced_cases() -> Iterator[Case]:
    """Yield the cases of ``memory_cases`` and ``flop_cases`` for families that are traced."""
    for family, names in TRACED_LINEARS.items():
        for attention in attentions(family):
            for targets in (names, names[-1:]):
                yield from _traced_steps(family, attention, targets)


def dropout_cases() -> Iterator[Case]:
    """Yield the same cases for one family of each kind, with dropout in its adapters."""
    for family, names in SHORT.items():
        for attention in attentions(family):
            for targets in (names, names[-1:]):
                for case in _traced_steps(family, attention, targets, lora_dropout=0.1):
                    yield case._replace(quantity=f"with dropout: {case.quantity}")


def _traced_steps(
    family: str, attention: Attention, targets: tuple[str, ...], lora_dropout: float = 0.0
) -> Iterator[Case]:
    """Yield steps at both ends of depth and with every number of bits."""
    shape, size, length = SHAPES[0]
    measured = load(family, shape, targets, attention=attention, lora_dropout=lora_dropout)
    spec, batch = measured.spec, BatchShape(size, length, is_padded=True, bits=32)
    source = source_of(config_of(family, shape))
    costs = plan_costs(source, spec, length, lora_dropout=lora_dropout)
    for depth, bits in itertools.product((1, shape.num_blocks), ACTIVATION_BITS):
        if bits == 0 and lora_dropout:
            continue  # training recomputes blocks without replaying the draws of dropout
        measured.train_top(depth)
        plan = plan_of(spec, depth, (bits,) * shape.num_blocks)
        demand = costs.demand(replace(plan, batch_size=size))
        found, memory = measure_step(measured, plan.activation_bits, batch), demand.memory
        held = memory.activations + memory.head
        yield Case("held between the passes", held, found.after_forward, bits)
        yield Case("peak of a step", held + memory.transient, found.peak, bits)
        if bits == 32:
            flops = step_flops(measured, batch)
            yield Case("FLOPs, forward", demand.forward_flops, flops.forward)
            yield Case("FLOPs, backward", demand.backward_flops, flops.backward)


def table(cases: list[Case]) -> str:
    """Return a table with a row for each quantity."""
    rows = ["| quantity | cases | equal | lowest | median | highest |", "|---|---|---|---|---|---|"]
    for quantity in dict.fromkeys(case.quantity for case in cases):
        deviations = np.array([case.deviation for case in cases if case.quantity == quantity])
        low, middle, high = (
            "0" if share == 0 else f"{100 * share:+.2f} %"
            for share in (deviations.min(), np.median(deviations), deviations.max())
        )
        equal = int((deviations == 0).sum())
        rows.append(f"| {quantity} | {len(deviations)} | {equal} | {low} | {middle} | {high} |")
    return "\n".join(rows) + "\n"


def draw(cases: list[Case]) -> Figure:
    """Draw charged against measured peaks on the left, and all deviations on the right."""
    figure = style.figure(style.IEEE.page_in, 2.6)
    left, right = figure.subplots(1, 2)
    peaks = [case for case in cases if case.quantity == "peak of a step"]
    for bits, color in COLORS.items():
        own = [case for case in peaks if case.bits == bits]
        measured = [case.measured / 1e6 for case in own]
        left.scatter(measured, [case.charged / 1e6 for case in own], s=5, color=color)
        shares = sorted(100 * case.deviation for case in own)
        right.plot(shares, np.linspace(0, 1, len(shares)), color=color, label=NAMES[bits])
    ends = [min(case.measured for case in peaks) / 1e6, max(case.measured for case in peaks) / 1e6]
    left.plot(ends, ends, color=colors.GREY, linewidth=0.6, zorder=0)
    left.set(xscale="log", yscale="log", xlabel="Measured peak (MB)", ylabel="Closed form (MB)")
    for bound in (-5, 5):
        right.axvline(bound, color=colors.RED, linewidth=0.6, linestyle=":")
    right.set(xlabel="Closed form too high by (%)", ylabel="Share of configurations")
    right.legend(title="Activations are saved")
    return figure


def _shown(found: str, mark: str) -> None:
    print(found)
    put(found, mark)


def main() -> None:
    """Measure, and put what was found into the documentation."""
    warnings.filterwarnings("ignore")
    _shown(table([*traced_cases(), *dropout_cases()]), "validate-traced")
    if sys.argv[1:] == ["traced"]:
        return
    cases = [
        *saved_cases(torch.float32),
        *saved_cases(torch.bfloat16),
        *flop_cases(),
        *memory_cases(),
        *traffic_cases(),
    ]
    _shown(table(cases), "validate-costs")
    FIGURE.parent.mkdir(exist_ok=True)
    with style.context():
        draw(cases).savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
