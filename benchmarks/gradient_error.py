"""Measure what packing saved activations does to gradients, over the menu of depth and packing.

python -m benchmarks.gradient_error      (a minute or two; MiniLM on wordnet-16)

For each depth, number of packed blocks next to the output, and bits, this project's own training
code computes the gradient of the adapters on a batch of texts, and so it does with nothing packed.
Beside the relative error stand the seconds and the memory of the plan on a board of the catalog.
The numbers go into docs/images/gradient-error.csv, which the figure beside it is drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import style
from benchmarks.documentation import ROOT
from devices.architectures import model_spec, plan_costs
from devices.fleet.catalog import profile
from devices.models.catalog import resolve
from devices.models.spec import ModelSpec
from devices.tasks.registry import load_task
from devices.tasks.task import Batch, Task
from devices.training.activations import RoundingNoise, packed_activations
from devices.training.adapters import load_adapter
from devices.training.batches import TokenizedTexts
from devices.training.host import choose_host, make_reproducible
from devices.training.model import AdaptedModel, load_model
from devices.training.tokens import ModelTokenizer
from devices.vocabulary.plan import Adapter, Factors, TermGrid, TrainingPlan

IMAGES = ROOT / "docs" / "images"
MODEL, DATA, BOARD = "minilm-l6", "wordnet-16", "jetson-tx2-maxn"
TARGETS, RANK, ALPHA = ("query", "value"), 8, 16.0
BATCH, TOKENS = 16, 64
NUM_DRAWS = 2
"""Drawings of the rounding noise that an error is the mean of."""
PACKED_BITS = (8, 4)


def main() -> None:
    """Measure every plan of the menu; write the numbers and the figure."""
    table = pd.DataFrame(list(menu()))
    table.to_csv(IMAGES / "gradient-error.csv", index=False, lineterminator="\n")
    with style.context():
        draw(table).savefig(IMAGES / "gradient-error.png", dpi=150)


def menu() -> Iterator[dict[str, float]]:
    """Yield one row for each depth, number of packed blocks and bits."""
    source, task = resolve(MODEL), load_task("classification", DATA)
    spec = model_spec(source, TARGETS, head=task.head(source.config))
    host = choose_host("cpu", "fp32")
    make_reproducible(host)
    model = load_model(source, spec, host)
    tokenizer = ModelTokenizer(source, TOKENS, model.vocabulary_size)
    texts = TokenizedTexts(*task.encode("train", tokenizer), pad_id=model.pad_id)
    examples = np.random.default_rng(0).permutation(len(task.data.train))[:BATCH]
    batch, adapter = texts.batch(examples, host.device), trained_adapter(spec)
    costs, board = plan_costs(source, spec, TOKENS), profile(BOARD)
    for depth in range(1, spec.num_blocks + 1):
        exact = gradient(model, task, batch, adapter, plan_of(spec, depth, 0, 8))
        for bits in PACKED_BITS:
            for packed in range(depth + 1):
                plan = plan_of(spec, depth, packed, bits)
                cost = costs.cost(plan, board)
                errors = [
                    float((gradient(model, task, batch, adapter, plan, seed) - exact).norm())
                    for seed in range(NUM_DRAWS if packed else 0)
                ]
                yield {
                    "depth": depth,
                    "packed_blocks": packed,
                    "bits": bits,
                    "step_s": sum(cost.step),
                    "memory_bytes": cost.memory.total,
                    "gradient_error": float(np.mean(errors or [0.0])) / float(exact.norm()),
                }


def trained_adapter(spec: ModelSpec) -> Adapter:
    """Return an adapter whose B is not zero, as after some steps: else A has no gradient."""
    rng = np.random.default_rng(1)
    start = spec.initial_adapter(RANK, ALPHA, rng)
    factors = {
        key: Factors(one.a, rng.normal(0.0, 0.02, one.b.shape).astype(np.float32))
        for key, one in start.factors.items()
    }
    return Adapter(factors, start.head, start.scale)


def plan_of(spec: ModelSpec, depth: int, packed: int, bits: int) -> TrainingPlan:
    """Return the plan of so many top blocks, those next to the output packed."""
    activations = [32] * spec.num_blocks
    activations[spec.num_blocks - packed :] = [bits] * packed
    return TrainingPlan(
        device_id=0,
        terms=TermGrid.top_blocks(spec.grid_shape(RANK), depth),
        weight_formats=("fp32",) * spec.num_blocks,
        activation_bits=tuple(activations),
        local_steps=1,
        batch_size=BATCH,
    )


def gradient(
    model: AdaptedModel,
    task: Task,
    batch: Batch,
    adapter: Adapter,
    plan: TrainingPlan,
    seed: int = 0,
) -> torch.Tensor:
    """Return the gradient of the adapters' trained numbers as one vector, without the head's."""
    loaded = load_adapter(model, adapter, plan.terms)
    model.weights.use(plan.weight_formats, adapter.merged, adapter.scale)
    noise = RoundingNoise(seed, batch.input_ids.device)
    with packed_activations(model.blocks, plan.activation_bits, noise):
        losses, _ = task.losses(model.logits(batch), batch, num_jobs=1)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    trained = loaded.parameters()
    factors = trained[: len(trained) - len(adapter.head)]
    found = torch.cat([p.grad.flatten() for p in factors if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return found


def draw(table: pd.DataFrame) -> Figure:
    """Return four maps of the menu: seconds and memory at 8 bits, and the error at 8 and 4."""
    figure = style.figure(style.IEEE.page_in, 2.1)
    eight, four = (table[table["bits"] == bits] for bits in PACKED_BITS)
    panels = (
        (eight.assign(value=1e3 * eight["step_s"]), "ms a step", "{:.0f}"),
        (eight.assign(value=eight["memory_bytes"] / 1e6), "memory, 8 bits (MB)", "{:.0f}"),
        (eight.assign(value=100 * eight["gradient_error"]), "gradient error, 8 bits (%)", "{:.1f}"),
        (four.assign(value=100 * four["gradient_error"]), "gradient error, 4 bits (%)", "{:.0f}"),
    )
    for axes, (rows, title, form) in zip(figure.subplots(1, 4), panels, strict=True):
        _map(axes, rows, title, form)
    return figure


def _map(axes: Axes, rows: pd.DataFrame, title: str, form: str) -> None:
    cells = rows.pivot_table(index="packed_blocks", columns="depth", values="value")
    image = axes.imshow(cells, cmap="viridis", origin="lower", aspect="auto")
    for row, packed in enumerate(cells.index):
        for column, depth in enumerate(cells.columns):
            value = cells.loc[packed, depth]
            if not np.isnan(value):
                shade = "white" if image.norm(value) < 0.6 else "black"
                axes.text(
                    column, row, form.format(value), ha="center", va="center", color=shade, size=7
                )
    axes.set_xticks(range(len(cells.columns)), [str(depth) for depth in cells.columns])
    axes.set_yticks(range(len(cells.index)), [str(packed) for packed in cells.index])
    axes.set(xlabel="Depth (blocks)", ylabel="Packed blocks", title=title)
    axes.title.set_fontsize(8)


if __name__ == "__main__":
    main()
