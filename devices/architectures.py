"""Finds the sizes and costs of a model, in closed form or by running its code without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from devices.cost.closed_form import ClosedFormCost
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.traced import TracedDemand
from devices.fleet.profile import ComputeBits
from devices.models.catalog import ModelSource
from devices.models.families import CLOSED_FORMS
from devices.models.heads import Head
from devices.models.spec import Attention, ModelSpec

ONLY_EAGER = ("mpnet",)
"""Families with closed forms for which transformers has no flash attention."""


def model_spec(
    source: ModelSource,
    targets: Sequence[str],
    *,
    head: Head,
    attention: Attention = "eager",
) -> ModelSpec:
    """Return the sizes of a model with LoRA on the layers that ``targets`` name.

    No weight is loaded. Where the family of the model has no closed forms, its code is run on fake
    tensors, which takes torch. Raises ValueError for a model that is no list of equal transformer
    blocks, for a target that it does not have, for a ``head`` that does not suit it, and for an
    attention that transformers does not offer for it.
    """
    family = str(source.config.get("model_type"))
    if family not in CLOSED_FORMS:
        from devices.tracing.outline import outlined_spec

        return outlined_spec(source, targets, head=head, attention=attention)
    if attention != "eager" and family in ONLY_EAGER:
        raise ValueError(
            f"cost.attention and training.attention must be eager for a {family}, whose scores "
            f"have a bias that flash attention does not take, got {attention} (model {source.name})"
        )
    spec = ModelSpec.from_config(source.name, source.config, targets, head)
    return replace(spec, attention=attention)


def plan_costs(
    source: ModelSource,
    model: ModelSpec,
    length: int,
    *,
    compute_bits: ComputeBits = 32,
    lora_dropout: float = 0.0,
    optimizer: OptimizerCost = ADAMW,
) -> ClosedFormCost:
    """Return the cost model of plans for this model on texts of ``length`` tokens.

    Blocks are traced where the family has no closed forms, or where the adapters have dropout.
    """
    if model.outline is None and not lora_dropout:
        return ClosedFormCost(model, length, compute_bits, optimizer=optimizer)
    from devices.tracing.block_tracer import BlockTracer

    traced = TracedDemand(BlockTracer(model, source.config, lora_dropout=lora_dropout))
    return ClosedFormCost(model, length, compute_bits, traced, optimizer)
