"""Reads the sizes of the model and chooses the cost model that plans are charged by."""

from __future__ import annotations

from functools import partial

from devices.architectures import model_spec, plan_costs
from devices.cost.closed_form import ClosedFormCost
from devices.cost.measured import MeasuredCost, read_steps
from devices.cost.model import CostModel
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.proxy import ProxyCost
from devices.models.catalog import ModelSource, resolve
from devices.models.families import Sizes, same_roles
from devices.models.heads import text_head
from devices.models.spec import ModelSpec
from devices.tasks.task import Task
from devices.vocabulary.number_formats import GROUP
from simulator.config.schema import RunConfig


def model_of(config: RunConfig, source: ModelSource, task: Task | None) -> ModelSpec:
    """Return the sizes of the model that is trained. Raises ValueError where it does not serve.

    ``task`` is None where its data cannot be read.
    """
    named = config.task
    # Without data the size of the head is unknown. Any will do to find the other problems.
    head = task.head(source.config) if task else text_head(2)
    sized = partial(model_spec, source, named.targets, head=head)
    try:
        model = sized(attention=config.cost.attention)
        if config.training != "none" and config.training.attention != model.attention:
            sized(attention=config.training.attention)
    except OverflowError as error:
        raise ValueError(f"config.json of {source.name} has sizes too large: {error}") from None
    _check_length(named.max_length, source, model)
    odd = [layer.name for layer in model.linears if layer.num_weights % GROUP]
    if odd:
        raise ValueError(
            f"the matrices of {named.model} must have a multiple of {GROUP} elements, so that they "
            f"can be packed by groups, but {', '.join(odd)} have not"
        )
    return model


def _check_length(max_length: int, source: ModelSource, model: ModelSpec) -> None:
    longest = (
        model.outline.max_length
        if model.outline
        else Sizes(source.config)["max_position_embeddings"]
    )
    if max_length > longest:
        raise ValueError(
            f"max_length must be at most the {longest} positions of {source.name}, got {max_length}"
        )


def larger_source(config: RunConfig) -> ModelSource | None:
    """Return the larger model that costs are charged for; None where the config names none."""
    cost = config.cost
    return resolve(cost.model, cost.revision, sizes_only=True) if cost.model else None


def closed_form(config: RunConfig, source: ModelSource, model: ModelSpec) -> ClosedFormCost:
    """Return the closed forms of a model under the config's training and rate of computing."""
    return plan_costs(
        source,
        model,
        config.task.max_length,
        compute_bits=config.cost.compute_bits,
        lora_dropout=config.cost.lora_dropout,
        optimizer=ADAMW if config.training == "none" else OptimizerCost.of(config.training),
    )


def proxy_cost(
    config: RunConfig, source: ModelSource, *, task: Task | None, proxy: ModelSpec
) -> ProxyCost:
    """Return the costs of the larger model for plans of the one that is trained, ``proxy``."""
    named = config.task
    head = task.head(source.config) if task else text_head(2)  # the same as for the proxy
    targets = config.cost.targets or same_roles(named.targets, source.config)
    large = model_spec(source, targets, head=head, attention=config.cost.attention)
    _check_length(named.max_length, source, large)
    return ProxyCost(proxy, closed_form(config, source, large))


def with_measured_times(config: RunConfig, priced: ClosedFormCost | ProxyCost) -> CostModel:
    """Return the cost model with the times of the config's table, where it names one.

    Raises ValueError where the table cannot be read.
    """
    if config.cost.table is None or isinstance(priced, ProxyCost):
        return priced
    return MeasuredCost(priced, tuple(read_steps(config.cost.table)))
